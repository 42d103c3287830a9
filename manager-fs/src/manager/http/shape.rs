//! What a name in an address, a query or a body must look like, as the interface describes it. Whether it is one, its
//! type decides when it is read.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

/// The form of a value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// A text that matches this.
    Text(&'static str),
    /// A whole number from this to that.
    Number(u64, u64),
    /// `true` or `false`.
    Truth,
    /// One of these words.
    Word(&'static [&'static str]),
}

impl Kind {
    /// Why a text is none of this form, as far as its type does not say it.
    pub(super) fn fault(self, text: &str) -> Option<String> {
        let Kind::Number(min, max) = self else { return None };
        let is_there = text.parse().is_ok_and(|number: u64| (min..=max).contains(&number));
        (!is_there).then(|| format!("want {min} to {max}"))
    }

    /// As JSON Schema.
    pub(super) fn schema(self) -> Value {
        match self {
            Kind::Text(pattern) => serde_json::json!({ "type": "string", "pattern": pattern }),
            Kind::Number(min, max) => serde_json::json!({ "type": "integer", "minimum": min, "maximum": max }),
            Kind::Truth => serde_json::json!({ "type": "boolean" }),
            Kind::Word(words) => serde_json::json!({ "type": "string", "enum": words }),
        }
    }
}

/// A name in a query.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) kind: Kind,
    /// It may be given several times.
    pub(super) many: bool,
    pub(super) required: bool,
}

/// One that may be given.
pub(super) const fn may(name: &'static str, kind: Kind, what: &'static str) -> Parameter {
    Parameter { name, what, kind, many: false, required: false }
}

/// One that may be given several times.
pub(super) const fn any(name: &'static str, kind: Kind, what: &'static str) -> Parameter {
    Parameter { name, what, kind, many: true, required: false }
}

/// One that must be given.
pub(super) const fn must(name: &'static str, kind: Kind, what: &'static str) -> Parameter {
    Parameter { name, what, kind, many: false, required: true }
}

const HOST_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$";
const NAME_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$";
const TARGET_PATTERN: &str = "^@?[A-Za-z0-9][A-Za-z0-9._-]{0,63}$";
const PRODUCT_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$";
const GENERATION_PATTERN: &str =
    "^([A-Za-z0-9][A-Za-z0-9._+-]{0,63}@[A-Za-z0-9][A-Za-z0-9._+~:-]{0,127}|[0-9a-f]{4,64})$";
const VERSION_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9._+~:-]{0,127}$";
const NUMBER_PATTERN: &str = "^([0-9]{1,10}|[0-9a-hjkmnp-tv-z]{5}-[0-9a-hjkmnp-tv-z]{5})$";
const SELECTOR_PATTERN: &str =
    "^(![A-Za-z0-9][A-Za-z0-9._-]{0,63}|[A-Za-z0-9][A-Za-z0-9._-]{0,63}(!?=[A-Za-z0-9][A-Za-z0-9._-]{0,63})?)$";
const LABEL_PATTERN: &str =
    "^([A-Za-z0-9][A-Za-z0-9._]{0,63}=[A-Za-z0-9][A-Za-z0-9._-]{0,63}|[A-Za-z0-9][A-Za-z0-9._]{0,63}-)$";
const TOKEN_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$";
const REPOSITORY_PATTERN: &str = "^[a-z0-9][a-z0-9-]{0,63}$";

pub(super) const HOST: Kind = Kind::Text(HOST_PATTERN);
pub(super) const TARGET: Kind = Kind::Text(TARGET_PATTERN);
pub(super) const PRODUCT: Kind = Kind::Text(PRODUCT_PATTERN);
pub(super) const VERSION: Kind = Kind::Text(VERSION_PATTERN);
pub(super) const GENERATION: Kind = Kind::Text(GENERATION_PATTERN);
pub(super) const NUMBER: Kind = Kind::Text(NUMBER_PATTERN);
pub(super) const SELECTOR: Kind = Kind::Text(SELECTOR_PATTERN);
pub(super) const NAME: Kind = Kind::Text(NAME_PATTERN);
/// The words of `rollout`.
pub(super) const WISHES: Kind = Kind::Word(&["start", "pause", "resume", "abort", "rollback"]);

/// The form of what stands in the place of `{name}` in an address.
pub(super) fn in_path(name: &str) -> Kind {
    match name {
        "host" => HOST,
        "generation" => GENERATION,
        "job" | "rollout" => NUMBER,
        "wish" => WISHES,
        "halt" => Kind::Word(&["pause", "resume"]),
        "repository" => Kind::Text(REPOSITORY_PATTERN),
        "token" => Kind::Text(TOKEN_PATTERN),
        _ => NAME,
    }
}

macro_rules! text_forms {
    ($($(#[$doc:meta])* $form:ident = $pattern:expr;)*) => { $(
        $(#[$doc])*
        pub(super) struct $form;

        impl JsonSchema for $form {
            fn schema_name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($form))
            }

            fn schema_id() -> Cow<'static, str> {
                Cow::Borrowed(concat!(module_path!(), "::", stringify!($form)))
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    )* };
}

text_forms! {
    /// A host.
    HostForm = HOST_PATTERN;
    /// A host, or @ and a group.
    TargetForm = TARGET_PATTERN;
    /// A product.
    ProductForm = PRODUCT_PATTERN;
    /// A generation.
    GenerationForm = GENERATION_PATTERN;
    /// What a host's labels meet.
    SelectorForm = SELECTOR_PATTERN;
    /// A label that is set, or taken away.
    LabelForm = LABEL_PATTERN;
    /// What a token is called.
    TokenForm = TOKEN_PATTERN;
    /// A role.
    RoleForm = "^(viewer|operator|publisher|admin)$";
    /// What a repository is called.
    RepositoryForm = REPOSITORY_PATTERN;
    /// What something is called.
    NameForm = NAME_PATTERN;
    /// A task of a policy.
    TaskForm = "^(backup|verify|check|prune|restore-test)$";
}
