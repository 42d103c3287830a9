use std::collections::BTreeMap;

use proptest::prelude::*;
use proto::message::{HostReport, Role};
use proto::name::Target;
use proto::{GenerationRef, GroupName, HostName, TreeId};

use super::*;
use crate::manager::connections::Newcomer;
use crate::manager::control::generations::verify;
use crate::manager::whole::testing::{Bench, alive, host};

const HOSTS: [&str; 3] = ["h0", "h1", "h2"];
const GROUPS: [&str; 2] = ["g0", "g1"];
/// Names, and their trees: two of them are the same one.
const GENERATIONS: [(&str, &str); 4] = [("a@1", "one"), ("a@2", "two"), ("b@1", "two"), ("b@2", "three")];

/// What an operator does.
#[derive(Debug, Clone)]
enum Act {
    Export(usize, Vec<usize>),
    Unexport(usize, Vec<usize>, bool),
    Join(usize, usize),
    Leave(usize, usize),
    DeleteGroup(usize),
    Forget(usize),
    /// A host says what it has attached.
    Attach(usize, usize),
    Detach(usize),
}

fn any_act() -> impl Strategy<Value = Act> {
    let targets = || prop::collection::vec(0..HOSTS.len() + GROUPS.len(), 1..3);
    prop_oneof![
        4 => (0..GENERATIONS.len(), targets()).prop_map(|(of, to)| Act::Export(of, to)),
        3 => (0..GENERATIONS.len(), targets(), any::<bool>()).prop_map(|(of, to, force)| Act::Unexport(of, to, force)),
        3 => (0..GROUPS.len(), 0..HOSTS.len()).prop_map(|(group, host)| Act::Join(group, host)),
        2 => (0..GROUPS.len(), 0..HOSTS.len()).prop_map(|(group, host)| Act::Leave(group, host)),
        1 => (0..GROUPS.len()).prop_map(Act::DeleteGroup),
        1 => (0..HOSTS.len()).prop_map(Act::Forget),
        2 => (0..HOSTS.len(), 0..GENERATIONS.len()).prop_map(|(host, of)| Act::Attach(host, of)),
        1 => (0..HOSTS.len()).prop_map(Act::Detach),
    ]
}

/// What is exported to whom, the simple way.
#[derive(Default)]
struct Model {
    exports: BTreeSet<(usize, String)>,
    groups: BTreeMap<String, BTreeSet<usize>>,
    attached: BTreeMap<usize, &'static str>,
}

fn target(number: usize) -> Target {
    let name =
        HOSTS.get(number).map_or_else(|| format!("@{}", GROUPS[number - HOSTS.len()]), |&host| host.to_owned());
    name.parse().unwrap()
}

impl Model {
    fn sees(&self, host: usize, of: usize) -> bool {
        let by_group = |(group, members): (&String, &BTreeSet<usize>)| {
            members.contains(&host) && self.exports.contains(&(of, format!("@{group}")))
        };
        self.exports.contains(&(of, HOSTS[host].to_owned())) || self.groups.iter().any(by_group)
    }

    fn has_all(&self, targets: &[Target]) -> bool {
        targets.iter().all(|target| match target {
            Target::Host(_) => true,
            Target::Group(group) => self.groups.contains_key(group.as_str()),
        })
    }

    fn visible(&self, host: usize) -> BTreeSet<String> {
        let seen = (0..GENERATIONS.len()).filter(|of| self.sees(host, *of));
        seen.map(|of| GENERATIONS[of].0.to_owned()).collect()
    }

    /// The hosts that have the generation attached and see it now, and not after these are taken back.
    fn would_lose(&self, of: usize, targets: &[Target]) -> BTreeSet<usize> {
        let named: BTreeSet<String> = targets.iter().map(Target::to_string).collect();
        let reaches = |host: usize, target: &str| match target.strip_prefix('@') {
            Some(group) => self.groups.get(group).is_some_and(|members| members.contains(&host)),
            None => target == HOSTS[host],
        };
        let left: Vec<_> = self.exports.iter().filter(|(g, t)| *g == of && !named.contains(t)).collect();
        let holds = |host: &usize| self.attached.get(host) == Some(&GENERATIONS[of].1);
        let concerned = |host: &usize| named.iter().any(|target| reaches(*host, target));
        let remains = |host: &usize| left.iter().any(|(_, target)| reaches(*host, target));
        (0..HOSTS.len()).filter(|host| holds(host) && concerned(host) && !remains(host)).collect()
    }
}

struct Both {
    bench: Bench,
    generations: Vec<Arc<Generation>>,
    model: Model,
}

impl Both {
    async fn new() -> Self {
        let bench = Bench::open().await;
        let mut generations = Vec::new();
        for (name, tree) in GENERATIONS {
            generations.push(bench.publish(name, tree).await);
        }
        for host in HOSTS {
            bench.enrol(host).await;
        }
        Self { bench, generations, model: Model::default() }
    }

    async fn export(&mut self, of: usize, targets: Vec<Target>) {
        let done = self.bench.manager.exports.export(&self.generations[of], &targets).await;
        if !self.model.has_all(&targets) {
            let refused = done.unwrap_err().to_string();
            assert!(refused.contains("does not exist; `manager-fs host group list`"), "{refused}");
            return;
        }
        let new: BTreeSet<String> = targets
            .iter()
            .map(Target::to_string)
            .filter(|name| self.model.exports.insert((of, name.clone())))
            .collect();
        let said: BTreeSet<String> = done.unwrap().targets.iter().map(Target::to_string).collect();
        assert_eq!(said, new, "those to which it was not exported before");
    }

    async fn unexport(&mut self, of: usize, targets: Vec<Target>, force: bool) {
        let wanted: GenerationRef = GENERATIONS[of].0.parse().unwrap();
        let done = self.bench.manager.exports.unexport(&wanted, &targets, force).await;
        if !self.model.has_all(&targets) {
            assert!(matches!(done, Err(ExportError::Host(HostError::UnknownGroup(_)))), "{done:?}");
            return;
        }
        let losers = self.model.would_lose(of, &targets);
        match done {
            Err(ExportError::Attached { generation, host }) if !force => {
                assert_eq!(generation, GENERATIONS[of].0);
                assert!(losers.iter().any(|loser| HOSTS[*loser] == host.as_str()), "{host} of {losers:?}");
            }
            Ok(_) => {
                assert!(force || losers.is_empty(), "{losers:?} have it attached");
                for target in targets {
                    self.model.exports.remove(&(of, target.to_string()));
                }
            }
            Err(error) => panic!("{error}"),
        }
    }

    async fn act(&mut self, act: Act) {
        let state = Arc::clone(&self.bench.manager.state);
        let group = |number: usize| GROUPS[number].parse::<GroupName>().unwrap();
        match act {
            Act::Export(of, to) => self.export(of, to.into_iter().map(target).collect()).await,
            Act::Unexport(of, to, force) => {
                self.unexport(of, to.into_iter().map(target).collect(), force).await;
            }
            Act::Join(to, who) => {
                state.add_members(&group(to), &[host(HOSTS[who])]).await.unwrap();
                self.model.groups.entry(GROUPS[to].to_owned()).or_default().insert(who);
            }
            Act::Leave(from, who) => {
                state.remove_members(&group(from), &[host(HOSTS[who])]).await.unwrap();
                self.model.groups.get_mut(GROUPS[from]).map(|members| members.remove(&who));
            }
            Act::DeleteGroup(gone) => {
                let known = self.model.groups.remove(GROUPS[gone]).is_some();
                assert_eq!(state.delete_group(&group(gone)).await.is_ok(), known);
                self.model.exports.retain(|(_, target)| target.trim_start_matches('@') != GROUPS[gone]);
            }
            Act::Forget(who) => {
                self.bench.manager.forget(&host(HOSTS[who])).await.unwrap();
                self.model.exports.retain(|(_, target)| target != HOSTS[who]);
                self.model.groups.values_mut().for_each(|members| _ = members.remove(&who));
                self.model.attached.remove(&who);
                // A host of the same name comes: nothing of the old one is its own.
                self.bench.enrol(HOSTS[who]).await;
            }
            Act::Attach(who, of) => {
                let tree = TreeId::of(GENERATIONS[of].1.as_bytes());
                self.bench.report(&host(HOSTS[who]), vec![HostReport::Attached(vec![tree])]).await;
                self.model.attached.insert(who, GENERATIONS[of].1);
            }
            Act::Detach(who) => {
                self.bench.report(&host(HOSTS[who]), vec![HostReport::Attached(Vec::new())]).await;
                self.model.attached.remove(&who);
            }
        }
    }

    /// Every question that a host's request leads to, for every host and generation.
    fn check(&self) {
        let exports = &self.bench.manager.exports;
        for (at, name) in HOSTS.iter().enumerate() {
            let (host, visible) = (host(name), self.model.visible(at));
            assert_eq!(self.bench.visible(&host), visible, "{host}");
            assert_eq!(exports.records_of(&host).len(), visible.len());
            for (of, generation) in self.generations.iter().enumerate() {
                let record = &generation.record;
                let same_tree = (0..GENERATIONS.len()).filter(|other| GENERATIONS[*other].1 == GENERATIONS[of].1);
                let permitted = same_tree.into_iter().any(|other| self.model.sees(at, other));
                assert_eq!(
                    exports.is_exported(&host, record),
                    self.model.sees(at, of),
                    "{} to {host}",
                    record.name()
                );
                assert_eq!(exports.permits(&host, &record.tree), permitted, "{} to {host}", record.name());
                assert_eq!(exports.check(&host, &record.tree).is_ok(), permitted);
                let named = exports.one_exported(&host, &record.name().parse().unwrap());
                assert_eq!(named.ok(), self.model.sees(at, of).then_some(record.tree));
                let by_tree = exports.one_exported(&host, &record.tree.to_hex().parse().unwrap());
                assert_eq!(by_tree.ok(), permitted.then_some(record.tree));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever was exported, grouped, taken back and forgotten in any order: each host sees what a set says.
    #[test]
    fn a_host_sees_what_is_exported_to_it_or_its_groups_and_nothing_else(
        acts in prop::collection::vec(any_act(), 1..40),
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let mut both = Both::new().await;
            for act in acts {
                both.act(act).await;
                both.check();
            }
        });
    }
}

/// A name that an operator gives twice is no other order than once.
#[tokio::test]
async fn a_target_that_is_named_twice_is_exported_and_taken_back_once() {
    let bench = Bench::open().await;
    let generation = bench.publish("a@1", "one").await;
    let (exports, twice) = (&bench.manager.exports, [target(0), target(3), target(0), target(3)]);
    bench.manager.state.add_members(&"g0".parse().unwrap(), &[host("h1"), host("h1")]).await.unwrap();
    let changed = exports.export(&generation, &twice).await.unwrap();
    assert_eq!(changed.targets.iter().collect::<BTreeSet<_>>(), twice.iter().collect());
    assert_eq!(changed.targets.len(), 2);
    let back = exports.unexport(&"a@1".parse().unwrap(), &twice, false).await.unwrap();
    let targets = |changed: &Changed| changed.targets.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!((back.targets.len(), targets(&back)), (2, targets(&changed)));
}

/// A stranger learns nothing by asking: what exists and what does not is refused in the same words.
#[tokio::test]
async fn a_refusal_does_not_tell_whether_the_thing_exists() {
    let bench = Bench::open().await;
    let there = bench.publish("a@1", "one").await;
    let (exports, stranger) = (&bench.manager.exports, bench.enrol("stranger").await);
    let refused = |wanted: &str| {
        let error = exports.one_exported(&stranger, &wanted.parse().unwrap()).unwrap_err();
        assert!(matches!(error, ExportError::NotExported(_)));
        error.to_string().replace(wanted, "X")
    };
    assert_eq!(refused("a@1"), refused("a@2"));
    assert_eq!(refused(&there.record.tree.to_hex()), refused(&"0".repeat(64)));
    let tree = |tree: TreeId| exports.check(&stranger, &tree).unwrap_err().to_string().replace(&tree.to_hex(), "X");
    assert_eq!(tree(there.record.tree), tree(TreeId::of(b"nowhere")));
}

/// An export to a name that is not enrolled is said to be so, and holds as soon as the host is there; a generation that was
/// taken back meanwhile is not exported any more.
#[tokio::test]
async fn hosts_that_come_later_are_named_and_what_is_gone_is_not_exported() {
    let bench = Bench::open().await;
    let generation = bench.publish("a@1", "one").await;
    let (exports, targets) = (&bench.manager.exports, [target(0), target(1)]);
    bench.enrol("h1").await;
    let changed = exports.export(&generation, &targets).await.unwrap();
    assert_eq!(changed.not_enrolled, [host("h0")]);
    assert_eq!(bench.visible(&bench.enrol("h0").await).len(), 1);
    assert_eq!(exports.export(&generation, &targets).await.unwrap(), Changed::default(), "nothing new");
    let record = &generation.record;
    bench.manager.state.remove_generation(&record.product, &record.version).await.unwrap();
    assert!(bench.visible(&host("h0")).is_empty());
    let refused = exports.export(&generation, &targets).await.unwrap_err().to_string();
    assert!(refused.contains("generation 'a@1' is not published"), "{refused}");
}

#[tokio::test]
async fn what_is_attached_is_taken_back_by_force_alone_and_a_revoked_host_has_no_say() {
    let bench = Bench::open().await;
    let generation = bench.publish("a@1", "one").await;
    let (exports, web): (_, HostName) = (&bench.manager.exports, bench.enrol("web").await);
    let (wanted, targets): (GenerationRef, [Target; 1]) = ("a@1".parse().unwrap(), ["web".parse().unwrap()]);
    exports.export(&generation, &targets).await.unwrap();
    bench.report(&web, vec![HostReport::Attached(vec![generation.record.tree])]).await;
    let refused = exports.unexport(&wanted, &targets, false).await.unwrap_err().to_string();
    assert_eq!(refused, "a@1 is attached on web; release it there, or use --force");
    assert!(bench.visible(&web).contains("a@1"), "a refusal changes nothing");
    exports.unexport(&wanted, &targets, true).await.unwrap();
    assert!(bench.visible(&web).is_empty());
    exports.export(&generation, &targets).await.unwrap();
    bench.manager.revoke(&web).await.unwrap();
    assert_eq!(exports.attached().await.unwrap(), BTreeMap::new());
    exports.unexport(&wanted, &targets, false).await.unwrap();
}

#[tokio::test]
async fn of_several_architectures_a_host_is_told_of_its_own_and_may_fetch_all() {
    let bench = Bench::open().await;
    let (exports, connections) = (&bench.manager.exports, &bench.manager.connections);
    let first = bench.publish_for("a@1", "x86_64", "64").await;
    bench.publish_for("a@1", "x86", "32").await;
    bench.publish_for("a@1", "aarch64", "arm").await;
    let host = bench.enrol("h0").await;
    exports.export(&first, &[Target::Host(host.clone())]).await.unwrap();
    let tree = |text: &str| TreeId::of(text.as_bytes());
    for (machine, own, foreign) in [
        (None, "64", None),
        (Some("x86_64"), "64", None),
        (Some("i686"), "32", None),
        (Some("aarch64"), "arm", None),
        (Some("s390x"), "64", Some("a@1 is published for x86_64 and aarch64 and x86, and h0 is s390x")),
    ] {
        let newcomer = Newcomer { machine: machine.map(str::to_owned), ..bench.newcomer(&host, Role::Control, 1) };
        bench.greet(&newcomer, alive()).await.unwrap();
        assert_eq!(connections.machine(&host).as_deref(), machine);
        let records = exports.records_of(&host);
        let told: Vec<_> = records.iter().map(|signed| verify(signed).unwrap().tree).collect();
        assert_eq!(told, [tree(own)], "{machine:?}");
        let named = GenerationRef::Named("a".parse().unwrap(), "1".parse().unwrap());
        assert_eq!(exports.one_exported(&host, &named).unwrap(), tree(own));
        let generation = exports.generation_for(&host, &"a".parse().unwrap(), &"1".parse().unwrap()).unwrap();
        assert_eq!(exports.foreign(&host, &generation).as_deref(), foreign);
        assert!(["64", "32", "arm"].iter().all(|text| exports.permits(&host, &tree(text))));
    }
    let kept: Vec<_> = bench.manager.state.generations().iter().map(|generation| generation.full_name()).collect();
    assert_eq!(kept, ["a@1", "a@1@x86", "a@1@aarch64"], "all of their trees are needed");
    bench.manager.state.remove_generation(&"a".parse().unwrap(), &"1".parse().unwrap()).await.unwrap();
    assert_eq!(bench.manager.state.generations().len(), 0);
    assert!(!exports.permits(&host, &tree("arm")));
}
