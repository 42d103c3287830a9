//! Groups by name and by rule against a plain model, over every kind of change and a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use proto::name::Target;
use proto::{GroupName, HostName};

use super::super::super::database::LocalStore;
use super::super::super::observations::LocalObservations;
use super::super::State;
use super::super::hosts::IssuedCertificate;
use super::super::tokens::TokenRecord;
use super::*;

const HOSTS: [&str; 4] = ["h1", "h2", "h3", "h4"];
const GROUPS: [&str; 3] = ["all", "db", "fra"];
const LABELS: [&str; 6] = ["site=fra", "site=ams", "site-", "role=db", "role=web", "role-"];
const SELECTORS: [&str; 6] = ["site=fra", "site!=fra", "site", "!site", "role=db", "role!=web"];

#[derive(Debug, Clone)]
enum Step {
    Enrol(usize),
    Forget(usize),
    Label(usize, Vec<usize>),
    Add(usize, Vec<usize>),
    Remove(usize, usize),
    Rule(usize, Vec<usize>),
    Delete(usize),
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    let (host, group) = (0..HOSTS.len(), 0..GROUPS.len());
    let (labels, selectors) =
        (prop::collection::vec(0..LABELS.len(), 1..4), prop::collection::vec(0..SELECTORS.len(), 0..3));
    prop_oneof![
        3 => host.clone().prop_map(Step::Enrol),
        1 => host.clone().prop_map(Step::Forget),
        5 => (host.clone(), labels).prop_map(|(host, labels)| Step::Label(host, labels)),
        3 => (group.clone(), prop::collection::vec(host.clone(), 1..3)).prop_map(|(group, hosts)| Step::Add(group, hosts)),
        2 => (group.clone(), host).prop_map(|(group, host)| Step::Remove(group, host)),
        4 => (group.clone(), selectors).prop_map(|(group, rule)| Step::Rule(group, rule)),
        1 => group.prop_map(Step::Delete),
        1 => Just(Step::Restart),
    ]
}

/// What an operator would expect, in the plainest words.
#[derive(Default)]
struct Model {
    enrolled: BTreeSet<&'static str>,
    labels: BTreeMap<&'static str, BTreeMap<String, String>>,
    /// Added by name, and the rule, of each group that there is.
    groups: BTreeMap<&'static str, (BTreeSet<&'static str>, Vec<&'static str>)>,
}

impl Model {
    fn meets(&self, host: &str, rule: &[&str]) -> bool {
        let of = |key: &str| self.labels.get(host).and_then(|labels| labels.get(key)).map(String::as_str);
        !rule.is_empty()
            && rule.iter().all(|selector| match (selector.split_once("!="), selector.split_once('=')) {
                (Some((key, value)), _) => of(key) != Some(value),
                (None, Some((key, value))) => of(key) == Some(value),
                (None, None) => match selector.strip_prefix('!') {
                    Some(key) => of(key).is_none(),
                    None => of(selector).is_some(),
                },
            })
    }

    fn members(&self, group: &str) -> Option<BTreeSet<&'static str>> {
        let (added, rule) = self.groups.get(group)?;
        let met = self.enrolled.iter().copied().filter(|host| self.meets(host, rule));
        Some(added.iter().copied().chain(met).collect())
    }
}

fn host(at: usize) -> HostName {
    HOSTS[at].parse().unwrap()
}

fn group(at: usize) -> GroupName {
    GROUPS[at].parse().unwrap()
}

async fn open(directory: &std::path::Path) -> State {
    // The follower that was aborted may hold the store for a moment.
    let store = loop {
        match LocalStore::open(&directory.join("control.redb")) {
            Ok(store) => break Arc::new(store),
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let observations = LocalObservations::open(&directory.join("observations.redb")).unwrap();
    State::open(store as _, Arc::new(observations.observations)).await.unwrap()
}

async fn enrol(state: &State, name: HostName, number: usize) {
    let hash = blake3::hash(format!("{name} {number}").as_bytes()).to_hex().to_string();
    let record = TokenRecord { host: name, expires: 100, used: None };
    state.add_token(&hash, &record, 1).await.unwrap();
    let token = state.token(&hash, 2).await.unwrap();
    state.enroll(&token, &IssuedCertificate { serial: format!("s{number}"), not_after: 50 }, 2).await.unwrap();
}

async fn take(state: &State, model: &mut Model, step: &Step, number: usize) {
    match step {
        Step::Enrol(at) => {
            enrol(state, host(*at), number).await;
            model.enrolled.insert(HOSTS[*at]);
        }
        Step::Forget(at) => {
            let forgotten = state.forget_host(&host(*at)).await;
            assert_eq!(forgotten.is_ok(), model.enrolled.remove(HOSTS[*at]));
            if forgotten.is_ok() {
                model.labels.remove(HOSTS[*at]);
                for (added, _) in model.groups.values_mut() {
                    added.remove(HOSTS[*at]);
                }
            }
        }
        Step::Label(at, labels) => {
            let changes: Vec<LabelChange> = labels.iter().map(|label| LABELS[*label].parse().unwrap()).collect();
            state.change_labels(&host(*at), &changes).await.unwrap();
            let of = model.labels.entry(HOSTS[*at]).or_default();
            for label in labels {
                match LABELS[*label].split_once('=') {
                    Some((key, value)) => drop(of.insert(key.to_owned(), value.to_owned())),
                    None => drop(of.remove(LABELS[*label].trim_end_matches('-'))),
                }
            }
        }
        Step::Add(to, hosts) => {
            let names: Vec<HostName> = hosts.iter().map(|at| host(*at)).collect();
            state.add_members(&group(*to), &names).await.unwrap();
            model.groups.entry(GROUPS[*to]).or_default().0.extend(hosts.iter().map(|at| HOSTS[*at]));
        }
        Step::Remove(from, at) => {
            let removed = state.remove_members(&group(*from), &[host(*at)]).await;
            let members = model.members(GROUPS[*from]);
            match (members, model.groups.get_mut(GROUPS[*from])) {
                (Some(members), Some((added, _))) => {
                    let by_rule = members.contains(HOSTS[*at]) && !added.contains(HOSTS[*at]);
                    assert_eq!(matches!(removed, Err(HostError::InByRule { .. })), by_rule);
                    assert_eq!(removed.is_ok(), !by_rule);
                    added.remove(HOSTS[*at]);
                }
                // Of a group that is not there nobody is left.
                _ => assert!(removed.is_ok()),
            }
        }
        Step::Rule(of, rule) => {
            let selectors: Vec<Selector> = rule.iter().map(|at| SELECTORS[*at].parse().unwrap()).collect();
            state.set_rule(&group(*of), &selectors).await.unwrap();
            model.groups.entry(GROUPS[*of]).or_default().1 = rule.iter().map(|at| SELECTORS[*at]).collect();
        }
        Step::Delete(of) => {
            let deleted = state.delete_group(&group(*of)).await;
            assert_eq!(deleted.is_ok(), model.groups.remove(GROUPS[*of]).is_some());
        }
        Step::Restart => {}
    }
}

/// Everything that is asked of groups, against the model.
fn agrees(state: &State, model: &Model) {
    let text = |hosts: BTreeSet<HostName>| hosts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let there: BTreeMap<String, Vec<String>> =
        state.groups().into_iter().map(|(group, hosts)| (group.to_string(), text(hosts))).collect();
    let expected: BTreeMap<String, Vec<String>> = model
        .groups
        .keys()
        .map(|group| {
            let members = model.members(group).unwrap_or_default();
            ((*group).to_owned(), members.into_iter().map(str::to_owned).collect())
        })
        .collect();
    assert_eq!(there, expected);
    for (at, name) in GROUPS.iter().enumerate() {
        let hosts = state.hosts_of(&Target::Group(group(at))).ok().map(text);
        assert_eq!(hosts.as_ref(), expected.get(*name), "{name}");
    }
    // A host that is neither enrolled nor added is in no group's list, whatever its labels would say.
    for (at, name) in HOSTS.iter().enumerate().filter(|(_, name)| model.enrolled.contains(**name)) {
        let groups: Vec<String> = state.groups_of(&host(at)).iter().map(ToString::to_string).collect();
        let of: Vec<String> = expected
            .iter()
            .filter(|(_, hosts)| hosts.iter().any(|host| host == name))
            .map(|(group, _)| group.clone())
            .collect();
        assert_eq!(groups, of, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn groups_are_what_was_said_of_them_also_after_a_restart(steps in prop::collection::vec(any_step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let (mut state, mut model) = (open(directory.path()).await, Model::default());
            for (number, step) in steps.iter().enumerate() {
                if matches!(step, Step::Restart) {
                    drop(state);
                    state = open(directory.path()).await;
                }
                take(&state, &mut model, step, number).await;
                agrees(&state, &model);
            }
        });
    }
}

#[tokio::test]
async fn labels_and_rules_have_bounds_that_name_what_has_too_many() {
    let directory = tempfile::tempdir().unwrap();
    let state = open(directory.path()).await;
    let labels = |range: std::ops::Range<usize>| -> Vec<LabelChange> {
        range.map(|n| format!("k{n}=v").parse().unwrap()).collect()
    };
    state.change_labels(&host(0), &labels(0..LABELS_MAX)).await.unwrap();
    let refused = state.change_labels(&host(0), &labels(LABELS_MAX..LABELS_MAX + 1)).await.unwrap_err().to_string();
    assert!(refused.contains("'h1'") && refused.contains("32 labels"), "{refused}");
    assert_eq!(state.labels_of(&host(0)).len(), LABELS_MAX, "what was refused changed nothing");
    // One may go as another comes.
    let mut exchanged = labels(LABELS_MAX..LABELS_MAX + 1);
    exchanged.insert(0, "k0-".parse().unwrap());
    state.change_labels(&host(0), &exchanged).await.unwrap();
    let rule = |count: usize| -> Vec<Selector> { (0..count).map(|n| format!("k{n}").parse().unwrap()).collect() };
    state.set_rule(&group(0), &rule(SELECTORS_MAX)).await.unwrap();
    let refused = state.set_rule(&group(0), &rule(SELECTORS_MAX + 1)).await.unwrap_err().to_string();
    assert!(refused.contains("'all'") && refused.contains("16 selectors"), "{refused}");
    assert_eq!(state.rules()[&group(0)].len(), SELECTORS_MAX);
}
