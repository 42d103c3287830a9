//! What can be asked by HTTP: each address and method with the role that it takes, what it takes and answers, and how it
//! becomes a command of the manager and its reply a document. No route does anything itself.

use hyper::Method;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::Value;

use super::ask::{Ask, decoded};
use super::problem::Problem;
use super::shape::Parameter;
use crate::manager::admin::{AdminReply, Long, PublishOrder, Quick};
use crate::manager::control::api_tokens::Role;
use crate::manager::documents::{self, EventDocument};

/// The form of a document.
pub(super) type Form = fn(&mut SchemaGenerator) -> Schema;

/// The manager's replies, in the order of what was asked.
pub(super) struct Replies(std::vec::IntoIter<AdminReply>);

impl Replies {
    pub(super) fn new(all: Vec<AdminReply>) -> Self {
        Self(all.into_iter())
    }

    /// The next one, which is made a value of the kind that was asked for.
    pub(super) fn next<T>(&mut self, take: impl FnOnce(AdminReply) -> Option<T>) -> Result<T, Problem> {
        self.0.next().and_then(take).ok_or_else(Problem::unexpected)
    }
}

type ToQuick = Box<dyn Fn(&Ask) -> Result<Vec<Quick>, Problem> + Send + Sync>;
type ToDocument = Box<dyn Fn(&Ask, Replies) -> Result<Value, Problem> + Send + Sync>;

/// How it is answered.
pub(super) enum Work {
    /// By commands that are quick, one after the other, and a document.
    Quick(ToQuick, ToDocument),
    /// By one that takes its time: events, and the document in the last of them.
    Long(fn(&Ask) -> Result<Long, Problem>),
    /// By taking in the archive that is the body, as events.
    Publish(fn(&Ask) -> Result<PublishOrder, Problem>),
    /// By the description of the interface.
    Description,
    /// By who asks, and whom.
    Status,
}

/// One address and method.
pub(super) struct Route {
    pub(super) method: Method,
    /// With `{name}` in the places of what is asked for.
    pub(super) path: &'static str,
    /// What it takes at least.
    pub(super) role: Role,
    /// What it does, a sentence.
    pub(super) what: &'static str,
    pub(super) query: Vec<Parameter>,
    pub(super) body: Option<Form>,
    pub(super) answer: Form,
    pub(super) work: Work,
}

fn form<D: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<D>()
}

/// What the events of a stream bear: what goes on, and at its end this document, or why there is none.
fn told<D: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let (event, done) = (generator.subschema_for::<EventDocument>(), generator.subschema_for::<D>());
    json_schema!({ "anyOf": [event, done, generator.subschema_for::<Problem>()] })
}

impl Route {
    /// One that is answered by events, of which the last bears this document.
    pub(super) fn long<D: JsonSchema>(
        method: Method,
        path: &'static str,
        role: Role,
        what: &'static str,
        work: Work,
    ) -> Self {
        Self { answer: told::<D>, ..Self::other::<D>(method, path, role, what, work) }
    }

    /// One that is answered at once.
    pub(super) fn quick<D: Serialize + JsonSchema + 'static>(
        method: Method,
        path: &'static str,
        role: Role,
        what: &'static str,
        ask: fn(&Ask) -> Result<Vec<Quick>, Problem>,
        answer: fn(&Ask, Replies) -> Result<D, Problem>,
    ) -> Self {
        let answer =
            move |ask: &Ask, replies: Replies| answer(ask, replies).map(|document| documents::json(&document));
        let work = Work::Quick(Box::new(ask), Box::new(answer));
        Self { method, path, role, what, query: Vec::new(), body: None, answer: form::<D>, work }
    }

    /// One that is answered by something else than commands that are quick.
    pub(super) fn other<D: JsonSchema>(
        method: Method,
        path: &'static str,
        role: Role,
        what: &'static str,
        work: Work,
    ) -> Self {
        Self { method, path, role, what, query: Vec::new(), body: None, answer: form::<D>, work }
    }

    /// What its query may have.
    pub(super) fn with(self, query: impl IntoIterator<Item = Parameter>) -> Self {
        Self { query: query.into_iter().collect(), ..self }
    }

    /// That it takes a body, and which.
    pub(super) fn takes<B: JsonSchema>(self) -> Self {
        Self { body: Some(form::<B>), ..self }
    }

    /// What stands in the places of its names, if this path is of its form.
    fn matches(&self, path: &str) -> Option<Vec<(&'static str, String)>> {
        named(self.path, path)
    }

    /// The query as it may be here.
    pub(super) fn allows(&self, query: &[(String, String)]) -> Result<(), Problem> {
        let known = |name: &str| self.query.iter().any(|parameter| parameter.name == name);
        if let Some((name, _)) = query.iter().find(|(name, _)| !known(name)) {
            let names: Vec<&str> = self.query.iter().map(|parameter| parameter.name).collect();
            let there = if names.is_empty() { String::from("there is none") } else { names.join(", ") };
            let name = proto::text::line(name, 80);
            return Err(Problem::bad_request(format!("nothing here is called '{name}': {there}")));
        }
        for (name, text) in query {
            let kind = self.query.iter().find(|parameter| parameter.name == name).map(|parameter| parameter.kind);
            if let Some(fault) = kind.and_then(|kind| kind.fault(text)) {
                return Err(Problem::bad_request(format!("{name}: {fault}")));
            }
        }
        let missing =
            |parameter: &&Parameter| parameter.required && !query.iter().any(|(name, _)| name == parameter.name);
        match self.query.iter().find(missing) {
            Some(parameter) => {
                Err(Problem::bad_request(format!("{} is missing: {}", parameter.name, parameter.what)))
            }
            None => Ok(()),
        }
    }
}

/// What stands in the places of a form's names, if this path is of that form.
pub(super) fn named(form: &'static str, path: &str) -> Option<Vec<(&'static str, String)>> {
    let (mut wanted, mut given) = (form.split('/'), path.split('/'));
    let mut named = Vec::new();
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(named),
            (Some(wanted), Some(given)) => match name_in(wanted) {
                Some(name) => named.push((name, decoded(given).filter(|text| !text.is_empty())?)),
                None if wanted == given => {}
                None => return None,
            },
            _ => return None,
        }
    }
}

/// The name that a part of a path has, such as `host` of `{host}`.
pub(super) fn name_in(part: &str) -> Option<&str> {
    part.strip_prefix('{')?.strip_suffix('}')
}

/// The route of a request, and what stands in the places of its names.
type Found<'a> = (&'a Route, Vec<(&'static str, String)>);

/// Looks for the route of a request.
pub(super) fn find<'a>(routes: &'a [Route], method: &Method, path: &str) -> Result<Found<'a>, Problem> {
    // HEAD is GET without its body, which the server leaves out.
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let mut there = Vec::new();
    for route in routes {
        if let Some(named) = route.matches(path) {
            if route.method == *method {
                return Ok((route, named));
            }
            there.push(route.method.to_string());
        }
    }
    if there.is_empty() {
        Err(Problem::not_found("there is nothing at this address; /v1/openapi.json says what there is"))
    } else {
        Err(Problem::method(there.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::super::edge::routes;
    use super::*;

    fn ask(method: &Method, path: &str) -> Result<(&'static str, Vec<String>), u16> {
        let routes = routes();
        let found = find(&routes, method, path).map_err(|problem| problem.status)?;
        Ok((found.0.path, found.1.into_iter().map(|(_, text)| text).collect()))
    }

    #[test]
    fn an_address_is_found_with_what_stands_in_it() {
        assert_eq!(ask(&Method::GET, "/v1/hosts"), Ok(("/v1/hosts", Vec::new())));
        assert_eq!(ask(&Method::HEAD, "/v1/hosts/a%2db"), Ok(("/v1/hosts/{host}", vec!["a-b".to_owned()])));
        let wish = ask(&Method::POST, "/v1/rollouts/7/pause");
        assert_eq!(wish, Ok(("/v1/rollouts/{rollout}/{wish}", vec!["7".to_owned(), "pause".to_owned()])));
        // What is named exactly comes before what may be any name.
        assert_eq!(ask(&Method::POST, "/v1/policies/n/runs").map(|found| found.0), Ok("/v1/policies/{policy}/runs"));
        for (method, path, status) in [
            (Method::GET, "/v1", 404),
            (Method::GET, "/v1/hosts/", 404),
            (Method::GET, "/v1/hosts/%ff", 404),
            (Method::GET, "/v1/hosts/a/b", 404),
            (Method::PUT, "/v1/hosts", 405),
        ] {
            assert_eq!(ask(&method, path), Err(status), "{method} {path}");
        }
    }

    #[test]
    fn a_query_has_only_what_is_known_and_all_that_is_wanted() {
        let routes = routes();
        let of = |path: &str, query: &[(&str, &str)]| {
            let query: Vec<(String, String)> =
                query.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
            find(&routes, &Method::GET, path).unwrap().0.allows(&query).map_err(|problem| problem.detail)
        };
        assert_eq!(of("/v1/hosts", &[("label", "site"), ("label", "!spare")]), Ok(()));
        assert!(of("/v1/hosts", &[("lable", "site")]).unwrap_err().contains("label, only"));
        assert!(of("/v1/groups", &[("x", "")]).unwrap_err().contains("there is none"));
        for (limit, allowed) in
            [("0", false), ("1", true), ("2000", true), ("2001", false), ("-1", false), ("x", false)]
        {
            assert_eq!(of("/v1/hosts", &[("limit", limit)]).is_ok(), allowed, "{limit}");
        }
        assert_eq!(of("/v1/hosts", &[("limit", "0")]), Err("limit: want 1 to 2000".to_owned()));
        assert_eq!(of("/v1/diff", &[("old", "p@1"), ("new", "p@2")]), Ok(()));
        assert_eq!(of("/v1/diff", &[("old", "p@1")]), Err("new is missing: to this one".to_owned()));
    }

    #[test]
    fn who_only_looks_orders_nothing_and_who_lets_people_in_is_an_admin() {
        for Route { method, path, role, body, .. } in routes() {
            let needed = match path {
                path if path.starts_with("/v1/api-tokens") => Role::Admin,
                path if path.ends_with("/revoke") && method != Method::GET => Role::Admin,
                "/v1/enrolments" => Role::Admin,
                _ if method != Method::GET => Role::Operator,
                _ => Role::Viewer,
            };
            assert!(role >= needed, "{method} {path} takes {role}");
            assert!(method != Method::GET || (body.is_none() && role != Role::Operator), "{method} {path}");
            assert!(path.starts_with("/v1/") && !path.ends_with('/'), "{path}");
        }
    }

    #[test]
    fn nothing_in_an_address_leads_out_of_it() {
        for path in ["/v1/../v1/hosts", "//v1/hosts", "/v1//hosts", "/v1/hosts/./a", "/V1/hosts", "/v1/hosts%2fa"] {
            assert_eq!(ask(&Method::GET, path), Err(404), "{path}");
        }
        // A slash in percent signs is of the name, whose type refuses it.
        let found = ask(&Method::GET, "/v1/hosts/..%2f..%2fetc").unwrap();
        assert_eq!(found, ("/v1/hosts/{host}", vec!["../../etc".to_owned()]));
        let routes = routes();
        let (route, path) = find(&routes, &Method::GET, "/v1/hosts/..%2f..%2fetc").unwrap();
        let Work::Quick(to_quick, _) = &route.work else { panic!() };
        let asked = Ask { path, query: Vec::new(), body: Default::default(), role: Role::Admin };
        assert_eq!(to_quick(&asked).map_err(|problem| problem.status).err(), Some(400));
    }

    #[test]
    fn each_address_and_method_is_there_once_and_every_wrong_method_is_told_the_right_ones() {
        let routes = routes();
        let mut seen = std::collections::BTreeSet::new();
        for route in &routes {
            assert!(seen.insert((route.path, route.method.to_string())), "{} {} twice", route.method, route.path);
            let path = route.path.replace(['{', '}'], "");
            let problem = find(&routes, &Method::PATCH, &path).map(|_| ()).unwrap_err();
            let allow = problem.allow.unwrap();
            assert!(
                problem.status == 405 && allow.split(", ").any(|one| one == route.method.as_str()),
                "{path}: {allow}"
            );
        }
    }

    #[test]
    fn replies_of_another_kind_or_too_few_are_a_fault_of_ours() {
        let done = |reply| if let AdminReply::Done = reply { Some(()) } else { None };
        let mut replies = Replies::new(vec![AdminReply::Done, AdminReply::Hosts(Vec::new())]);
        assert_eq!(replies.next(done), Ok(()));
        assert_eq!(replies.next(done), Err(Problem::unexpected()));
        assert_eq!(replies.next(done), Err(Problem::unexpected()));
    }
}
