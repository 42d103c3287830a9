//! The description of the interface (OpenAPI 3.1), out of its routes and the types of what they take and answer.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use super::ask::MANY_MAX;
use super::problem::Problem;
use super::route::{Route, Work, name_in};
use super::shape::{Parameter, in_path};

/// The whole of it.
pub(super) fn description(routes: &[Route]) -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for route in routes {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_ascii_lowercase()] = operation(route, &mut generator);
    }
    let problem = generator.subschema_for::<Problem>();
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "manager-fs",
            "version": crate::version::VERSION,
            "description": "Everything that the manager's command line does, by HTTP. docs/api.md says how to begin.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {
                "problem": {
                    "description": "Why it was not done: the thing, the fault, and what to do",
                    "content": { "application/problem+json": { "schema": problem } },
                },
            },
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let in_paths = route
        .path
        .split('/')
        .filter_map(name_in)
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": in_path(name).schema() }));
    let parameters: Vec<Value> = in_paths.chain(route.query.iter().map(in_query)).collect();
    let answer = (route.answer)(generator);
    let kind = match route.work {
        Work::Long(_) | Work::Publish(_) => "text/event-stream",
        _ => "application/json",
    };
    let answer = if kind == "application/json" { json!({ "schema": answer }) } else { events(&answer) };
    let mut operation = json!({
        "operationId": id(route),
        "summary": route.what,
        "description": format!("Takes the role {}.", route.role),
        "parameters": parameters,
        "responses": {
            "200": { "description": "What was asked", "content": { kind: answer } },
            "default": { "$ref": "#/components/responses/problem" },
        },
    });
    if let Some(body) = route.body {
        let schema = body(generator);
        operation["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    if let Work::Publish(_) = route.work {
        operation["requestBody"] = json!({ "required": true, "content": { "application/octet-stream": {} } });
    }
    operation
}

/// One event after the other, of which this is each; what its data is, its name says.
fn events(of: &schemars::Schema) -> Value {
    let data = json!({ "type": "string", "contentMediaType": "application/json", "contentSchema": of });
    json!({ "schema": { "type": "object", "properties": { "event": { "type": "string" }, "data": data } } })
}

fn in_query(parameter: &Parameter) -> Value {
    let one = parameter.kind.schema();
    let schema = if parameter.many { json!({ "type": "array", "items": one, "maxItems": MANY_MAX }) } else { one };
    json!({
        "name": parameter.name,
        "in": "query",
        "description": parameter.what,
        "required": parameter.required,
        "schema": schema,
    })
}

/// Such as `get_hosts_host`.
fn id(route: &Route) -> String {
    let parts = route.path.split('/').filter(|part| !part.is_empty() && *part != "v1");
    let words = parts.map(|part| name_in(part).unwrap_or(part).replace(['-', '.'], "_"));
    let method = route.method.as_str().to_ascii_lowercase();
    std::iter::once(method).chain(words).collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::edge::routes;
    use super::*;

    #[test]
    fn every_address_is_described_once_and_every_name_that_it_refers_to_is_there() {
        let routes = routes();
        let whole = description(&routes);
        let ids: BTreeSet<String> = routes.iter().map(id).collect();
        assert_eq!(ids.len(), routes.len(), "two have one name");
        let described: usize =
            whole["paths"].as_object().unwrap().values().map(|of| of.as_object().unwrap().len()).sum();
        assert_eq!(described, routes.len());
        let text = whole.to_string();
        for reference in text.split("\"$ref\":\"#/").skip(1) {
            let path = reference.split('"').next().unwrap();
            assert!(whole.pointer(&format!("/{path}")).is_some(), "{path} is not there");
        }
        for (name, schema) in whole["components"]["schemas"].as_object().unwrap() {
            assert!(schema["description"].is_string() || schema["type"] != "object", "{name} says not what it is");
        }
    }

    #[test]
    fn each_route_says_what_it_takes_in_its_path() {
        for route in routes() {
            let names = route.path.split('/').filter_map(name_in).count();
            assert!(names < 3 && route.what.len() > 5 && !route.what.ends_with('.'), "{}", route.path);
        }
    }
}
