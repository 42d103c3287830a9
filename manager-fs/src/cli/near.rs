//! "Did you mean": names that are near one that nobody knows.

use std::time::Duration;

use proto::name::Target;
use proto::{GenerationRef, HostName, Product};

use crate::manager::admin::{AdminReply, AdminRequest, GenerationView, Long, Quick};
use crate::net::Link;

/// The question after an error, with a space before it; nothing where no name is near or the manager does not say.
pub(super) async fn among_what_the_manager_knows(link: &Link, request: &AdminRequest, at_most: Duration) -> String {
    let typed = Typed::of(request);
    let ask = async |request: Quick| {
        link.request::<_, AdminReply>(&AdminRequest::from(request), |_| {}, at_most).await.ok()
    };
    let mut near = Vec::new();
    if !typed.generations.is_empty() || !typed.products.is_empty() {
        let Some(AdminReply::Generations(known)) = ask(Quick::Generations(None)).await else {
            return String::new();
        };
        near.extend(typed.generations.iter().filter_map(|typed| generation(typed, &known)));
        let products: Vec<String> = known.iter().map(|view| view.record.product.to_string()).collect();
        near.extend(typed.products.iter().filter_map(|typed| nearest(typed, &products)));
    }
    if !typed.hosts.is_empty()
        && let Some(AdminReply::Hosts(known)) = ask(Quick::Hosts).await
    {
        let known: Vec<String> = known.iter().map(|view| view.name.to_string()).collect();
        near.extend(typed.hosts.iter().filter_map(|typed| nearest(typed, &known)));
    }
    if !typed.groups.is_empty()
        && let Some(AdminReply::Groups(known)) = ask(Quick::Groups).await
    {
        let known: Vec<String> = known.iter().map(|(group, _)| group.to_string()).collect();
        near.extend(typed.groups.iter().filter_map(|typed| nearest(typed, &known)).map(|group| format!("@{group}")));
    }
    question(&near)
}

/// ` (did you mean 'a' or 'b'?)`
pub(super) fn question(near: &[String]) -> String {
    let quoted: Vec<String> = near.iter().map(|name| format!("'{name}'")).collect();
    if quoted.is_empty() { String::new() } else { format!(" (did you mean {}?)", quoted.join(" or ")) }
}

/// What of a request the operator has named.
#[derive(Default)]
struct Typed {
    generations: Vec<GenerationRef>,
    products: Vec<String>,
    hosts: Vec<String>,
    groups: Vec<String>,
}

impl Typed {
    fn of(request: &AdminRequest) -> Self {
        let mut typed = Self::default();
        match request {
            AdminRequest::Quick(quick) => typed.in_quick(quick),
            AdminRequest::Long(Long::Publish(order)) => typed.generations.extend(order.onto.clone()),
            AdminRequest::Long(Long::Upgrade(order)) => {
                typed.generations.push(order.generation.clone());
                typed.targets(&order.targets);
            }
            AdminRequest::Long(Long::Save(order)) => typed.generations.extend(order.generations.clone()),
            AdminRequest::Long(_) => {}
        }
        typed
    }

    fn in_quick(&mut self, request: &Quick) {
        match request {
            Quick::Generations(product) => self.products.extend(product.iter().map(Product::to_string)),
            Quick::Show(generation) | Quick::Unpublish(generation) => self.generations.push(generation.clone()),
            Quick::Diff(old, new) => self.generations.extend([old.clone(), new.clone()]),
            Quick::Export(generation, targets) | Quick::Unexport { generation, targets, .. } => {
                self.generations.push(generation.clone());
                self.targets(targets);
            }
            Quick::Revoke(host) | Quick::JobRun { host, .. } => self.hosts.push(host.to_string()),
            Quick::GroupAdd(_, hosts) => self.hosts.extend(hosts.iter().map(HostName::to_string)),
            Quick::JobRunOnGroup { group, .. } | Quick::GroupRemove(group, _) | Quick::GroupDelete(group) => {
                self.groups.push(group.to_string())
            }
            _ => {}
        }
    }

    fn targets(&mut self, targets: &[Target]) {
        for target in targets {
            match target {
                Target::Host(host) => self.hosts.push(host.to_string()),
                Target::Group(group) => self.groups.push(group.to_string()),
            }
        }
    }
}

fn generation(typed: &GenerationRef, known: &[GenerationView]) -> Option<String> {
    let names: Vec<String> = known.iter().map(|view| view.record.name()).collect();
    match typed {
        GenerationRef::Named(..) => nearest(&typed.to_string(), &names),
        // Nobody types a tree id by hand.
        GenerationRef::TreePrefix(_) => None,
    }
}

/// The known name that is nearest to one that is not known, if it is near: a slip of a finger or two, or another version
/// of the same product. Nothing for a name that is known.
pub(super) fn nearest(typed: &str, known: &[String]) -> Option<String> {
    if known.iter().any(|name| name == typed) {
        return None;
    }
    let slips = |name: &str| strsim::damerau_levenshtein(&typed.to_lowercase(), &name.to_lowercase());
    // One for short names, and one more for each five characters.
    let allowed = 1 + typed.chars().count() / 5;
    let near = known.iter().map(|name| (slips(name), name)).filter(|(slips, _)| *slips <= allowed);
    let nearest = near.min_by_key(|(slips, _)| *slips).map(|(_, name)| name);
    let product = typed.split_once('@').map(|(product, _)| product);
    // The newest stands last.
    let same_product = || known.iter().rev().find(|name| name.split_once('@').map(|(of, _)| of) == product);
    nearest.or_else(|| product.and_then(|_| same_product())).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_slip_of_a_finger_is_understood() {
        let hosts = known(&["host-1", "db-primary", "web"]);
        for (typed, meant) in [("hots-1", "host-1"), ("db-primry", "db-primary"), ("wbe", "web"), ("WEB", "web")] {
            assert_eq!(nearest(typed, &hosts).as_deref(), Some(meant), "{typed}");
        }
        for far in ["nobody", "a", "database"] {
            assert_eq!(nearest(far, &hosts), None, "{far}");
        }
        assert_eq!(nearest("web", &hosts), None, "what is known is meant");
    }

    #[test]
    fn another_version_of_the_same_product_is_offered() {
        let names = known(&["data-agent@1.0", "data-agent@2.0", "media-agent@7"]);
        assert_eq!(nearest("data-agnet@2.0", &names).as_deref(), Some("data-agent@2.0"));
        assert_eq!(nearest("data-agent@17.4-beta", &names).as_deref(), Some("data-agent@2.0"));
        assert_eq!(nearest("unknown@1.0", &names), None);
    }

    #[test]
    fn the_question_names_each() {
        assert_eq!(question(&[]), "");
        assert_eq!(question(&known(&["a", "b"])), " (did you mean 'a' or 'b'?)");
    }
}
