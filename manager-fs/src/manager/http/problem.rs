//! What is answered in the place of what was asked: `application/problem+json` (RFC 9457).

use std::borrow::Cow;

use hyper::StatusCode;
use proto::message::Fault;
use schemars::JsonSchema;
use serde::Serialize;

use crate::manager::admin::afar::too_little;
use crate::manager::control::api_tokens::Role;
use crate::manager::error::ManagerError;

/// Why a request was not answered as it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Problem {
    /// The kind of problem in a few words; the same for all of one status.
    pub(super) title: Cow<'static, str>,
    /// The status of the answer.
    pub(super) status: u16,
    /// Which thing it is about, what is wrong with it, and what to do.
    pub(super) detail: String,
    /// The methods that there are, where the asked one is none.
    #[serde(skip)]
    pub(super) allow: Option<String>,
    /// After how many seconds it is worth to ask again.
    #[serde(skip)]
    pub(super) retry_after: Option<u64>,
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = Cow::Borrowed(status.canonical_reason().unwrap_or_default());
        Self { title, status: status.as_u16(), detail: detail.into(), allow: None, retry_after: None }
    }

    /// What was asked cannot be understood.
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// Nobody knows who asks.
    pub(super) fn stranger(detail: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, detail)
    }

    /// Who asks may not.
    pub(super) fn forbidden(needed: Role, has: Role) -> Self {
        Self::new(StatusCode::FORBIDDEN, too_little(needed, has))
    }

    /// A form was not made by a page of this sign-in.
    pub(super) fn forged() -> Self {
        let detail = "the form does not come from a page of this sign-in: open the page again and send it once more";
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    /// There is no such thing.
    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// It is there, and not by this method.
    pub(super) fn method(allow: String) -> Self {
        let problem = Self::new(StatusCode::METHOD_NOT_ALLOWED, format!("this address takes {allow}"));
        Self { allow: Some(allow), ..problem }
    }

    /// The body is too large.
    pub(super) fn too_large(max: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a body may have {max} bytes here"))
    }

    /// The body did not come.
    pub(super) fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time: send it again")
    }

    /// Too many wrong tokens came from there.
    pub(super) fn too_often(seconds: u64) -> Self {
        let detail = "too many requests of strangers came from this address: wait, and use a token that is good";
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, detail);
        Self { retry_after: Some(seconds), ..problem }
    }

    /// There is too much to do.
    pub(super) fn busy() -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "too much is being asked at once: ask again");
        Self { retry_after: Some(5), ..problem }
    }

    /// A program fault: an answer is of another kind than its question.
    pub(crate) fn unexpected() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the manager answered itself something else: please report it")
    }
}

impl From<ManagerError> for Problem {
    fn from(error: ManagerError) -> Self {
        Self::from(Fault::from(error))
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        let status = match &fault {
            Fault::NotFound(_) => StatusCode::NOT_FOUND,
            // It was understood; as things are, it cannot be.
            Fault::BadRequest(_) | Fault::NotExported(_) | Fault::Refused(_) | Fault::Draining => {
                StatusCode::CONFLICT
            }
            Fault::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Fault::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let detail = match fault {
            Fault::NotFound(text) | Fault::BadRequest(text) | Fault::Failed(text) => text,
            other => other.to_string(),
        };
        Self::new(status, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_of_the_manager_keeps_its_words_and_has_a_status() {
        let why = || String::from("why");
        for (fault, status, detail) in [
            (Fault::NotFound(why()), 404, "why"),
            (Fault::BadRequest(why()), 409, "why"),
            (Fault::Refused(why()), 409, "refused: why"),
            (Fault::NotExported(why()), 409, "not exported to this host: why"),
            (Fault::Unavailable(why()), 503, "unavailable: why"),
            (Fault::Failed(why()), 500, "why"),
        ] {
            let problem = Problem::from(fault);
            assert_eq!((problem.status, problem.detail.as_str()), (status, detail));
        }
        let document = serde_json::to_value(Problem::method("GET, PUT".to_owned())).unwrap();
        let wanted = serde_json::json!({
            "title": "Method Not Allowed", "status": 405, "detail": "this address takes GET, PUT",
        });
        assert_eq!(document, wanted, "and nothing else");
    }

    #[test]
    fn every_problem_has_the_same_shape_and_says_what_to_do() {
        let all = [
            (Problem::bad_request("x"), 400, "Bad Request"),
            (Problem::stranger("x"), 401, "Unauthorized"),
            (Problem::forbidden(Role::Admin, Role::Viewer), 403, "Forbidden"),
            (Problem::forged(), 403, "Forbidden"),
            (Problem::not_found("x"), 404, "Not Found"),
            (Problem::too_slow(), 408, "Request Timeout"),
            (Problem::too_large(7), 413, "Payload Too Large"),
            (Problem::too_often(6), 429, "Too Many Requests"),
            (Problem::unexpected(), 500, "Internal Server Error"),
            (Problem::busy(), 503, "Service Unavailable"),
        ];
        for (problem, status, title) in all {
            let document = serde_json::to_value(&problem).unwrap();
            let wanted = serde_json::json!({ "title": title, "status": status, "detail": problem.detail });
            assert_eq!(document, wanted);
            assert!(!problem.detail.is_empty() && problem.allow.is_none(), "{problem:?}");
            assert_eq!(problem.retry_after.is_some(), matches!(status, 429 | 503), "{status}");
        }
        let forbidden = Problem::forbidden(Role::Publisher, Role::Viewer).detail;
        assert!(forbidden.contains("takes the role publisher, and the token has viewer"), "{forbidden}");
    }
}
