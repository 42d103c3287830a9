use proto::agent::{AgentState, ChangeId, Step};
use proto::message::HostReport;

use super::*;
use crate::manager::whole::testing::{Bench, agent, alive, host, step};

async fn ask(bench: &Bench, request: Quick) -> AdminReply {
    at_once(&bench.manager, request).await.unwrap_or_else(|error| AdminReply::Fault(error.into()))
}

async fn refused(bench: &Bench, request: Quick) -> String {
    match ask(bench, request).await {
        AdminReply::Fault(fault) => fault.to_string(),
        other => panic!("{other:?}"),
    }
}

async fn names(bench: &Bench, product: Option<&str>) -> Vec<String> {
    let product = product.map(|product| product.parse().unwrap());
    let AdminReply::Generations(views) = ask(bench, Quick::Generations(product)).await else { panic!() };
    views.iter().map(|view| view.record.name()).collect()
}

#[tokio::test]
async fn generations_are_listed_by_product_and_then_as_they_were_published() {
    let bench = Bench::open().await;
    assert_eq!(names(&bench, None).await, [] as [&str; 0]);
    for name in ["b@2", "a@9", "b@1", "a@10"] {
        bench.publish(name, name).await;
    }
    assert_eq!(names(&bench, None).await, ["a@9", "a@10", "b@2", "b@1"]);
    assert_eq!(names(&bench, Some("b")).await, ["b@2", "b@1"]);
    assert_eq!(names(&bench, Some("c")).await, [] as [&str; 0]);
    let unknown = refused(&bench, Quick::Show("a@1".parse().unwrap())).await;
    assert!(
        unknown.contains("generation 'a@1' is not published; `manager-fs generations` lists what is"),
        "{unknown}"
    );
}

/// Nobody loses what it runs: first the export goes, then the host's attachment, then the generation.
#[tokio::test]
async fn a_generation_is_taken_back_when_nobody_may_see_it_and_nobody_has_it() {
    let bench = Bench::open().await;
    let (generation, web) = (bench.publish("a@1", "one").await, bench.enrol("web").await);
    let (wanted, targets) = (|| "a@1".parse().unwrap(), || vec!["web".parse().unwrap()]);
    ask(&bench, Quick::Export(wanted(), targets())).await;
    bench.report(&web, vec![HostReport::Attached(vec![generation.record.tree])]).await;
    let AdminReply::Generation(view) = ask(&bench, Quick::Show(wanted())).await else { panic!() };
    assert_eq!((view.exports.len(), view.attached), (1, vec![web.clone()]));
    let exported = refused(&bench, Quick::Unpublish(wanted())).await;
    assert!(exported.contains("a@1 is exported to web: `manager-fs unexport a@1 --from web` first"), "{exported}");
    let unexport = |force| Quick::Unexport { generation: wanted(), targets: targets(), force };
    assert!(refused(&bench, unexport(false)).await.contains("a@1 is attached on web"));
    assert!(matches!(ask(&bench, unexport(true)).await, AdminReply::Changed(_)));
    assert!(refused(&bench, Quick::Unpublish(wanted())).await.contains("a@1 is attached on web"));
    // The same tree under another name: the host keeps what it has.
    bench.publish("a@2", "one").await;
    assert_eq!(ask(&bench, Quick::Unpublish(wanted())).await, AdminReply::Done);
    assert_eq!(names(&bench, None).await, ["a@2"]);
    assert!(refused(&bench, Quick::Unpublish("a@2".parse().unwrap())).await.contains("a@2 is attached on web"));
    bench.report(&web, vec![HostReport::Attached(Vec::new())]).await;
    assert_eq!(ask(&bench, Quick::Unpublish("a@2".parse().unwrap())).await, AdminReply::Done);
}

/// `agents` tells of the last change-over alone, and goes on telling what a host that is away said last.
#[tokio::test]
async fn agents_are_listed_with_the_steps_of_their_last_change() {
    let bench = Bench::open().await;
    let (old, new) = (bench.publish("a@1", "one").await, bench.publish("a@2", "two").await);
    let (web, mail) = (bench.enrol("web").await, bench.enrol("mail").await);
    let steps = [
        step(ChangeId(0), &old, Step::Launched, 1),
        step(ChangeId(5), &new, Step::Swapped, 2),
        step(ChangeId(5), &new, Step::Returned, 3),
        step(ChangeId(6), &new, Step::Swapped, 4),
        step(ChangeId(6), &new, Step::Confirmed, 5),
    ];
    let last = steps[3..].to_vec();
    bench.report(&web, steps.into_iter().map(HostReport::Step).collect()).await;
    bench.report(&web, vec![HostReport::Agents(vec![agent(&new, AgentState::Serving, 7)])]).await;
    bench.report(&mail, vec![HostReport::Agents(vec![agent(&old, AgentState::Stopped, 0)])]).await;
    let link = bench.connect(&web, alive()).await;
    let AdminReply::Agents(views) = ask(&bench, Quick::Agents).await else { panic!() };
    let said: Vec<_> = views.iter().map(|view| (view.host.as_str(), view.connected, view.status.state)).collect();
    assert_eq!(said, [("mail", false, AgentState::Stopped), ("web", true, AgentState::Serving)]);
    assert_eq!(views[1].last_change, last);
    assert_eq!(views[0].last_change, []);
    link.close("it ends");
    let AdminReply::Agents(after) = ask(&bench, Quick::Agents).await else { panic!() };
    assert_eq!((after[1].connected, &after[1].status), (false, &views[1].status));
    ask(&bench, Quick::Forget(web)).await;
    let AdminReply::Agents(left) = ask(&bench, Quick::Agents).await else { panic!() };
    assert_eq!(left.len(), 1, "of a host that is forgotten nothing is told");
}

#[tokio::test]
async fn hosts_are_listed_with_what_they_are_and_said() {
    let bench = Bench::open().await;
    let (web, mail) = (bench.enrol("web").await, bench.enrol("mail").await);
    ask(&bench, Quick::GroupAdd("all".parse().unwrap(), vec![web.clone(), mail.clone()])).await;
    bench.connect(&web, alive()).await;
    bench.report(&web, vec![HostReport::WrongHash { what: "chunk x".into() }]).await;
    ask(&bench, Quick::Revoke(mail)).await;
    let AdminReply::Hosts(hosts) = ask(&bench, Quick::Hosts).await else { panic!() };
    let [mail, web] = &hosts[..] else { panic!("{hosts:?}") };
    assert_eq!((web.name.as_str(), web.revoked, web.software.as_str()), ("web", None, "0.6.0"));
    assert!(web.connected_since.is_some() && web.certificate_expires.is_some());
    assert_eq!(web.wrong_hashes.iter().map(|(_, what)| what.as_str()).collect::<Vec<_>>(), ["chunk x"]);
    assert_eq!(web.groups, ["all".parse().unwrap()]);
    assert_eq!((mail.connected_since, mail.certificate_expires), (None, None), "no certificate of it is accepted");
    assert!(mail.revoked.is_some());
}

#[tokio::test]
async fn groups_change_what_their_hosts_see_and_only_known_ones_are_changed() {
    let bench = Bench::open().await;
    let web = bench.enrol("web").await;
    bench.publish("a@1", "one").await;
    let group = || "all".parse().unwrap();
    for request in [Quick::GroupRemove(group(), vec![web.clone()]), Quick::GroupDelete(group())] {
        assert!(refused(&bench, request).await.contains("group 'all' does not exist"));
    }
    let AdminReply::Changed(changed) = ask(&bench, Quick::GroupAdd(group(), vec![web.clone(), host("later")])).await
    else {
        panic!()
    };
    assert_eq!(changed.not_enrolled, [host("later")]);
    ask(&bench, Quick::Export("a@1".parse().unwrap(), vec!["@all".parse().unwrap()])).await;
    assert_eq!(bench.visible(&web).len(), 1);
    ask(&bench, Quick::GroupRemove(group(), vec![web.clone()])).await;
    assert_eq!(bench.visible(&web).len(), 0);
    let groups = ask(&bench, Quick::Groups).await;
    assert_eq!(groups, AdminReply::Groups(vec![(group(), vec![host("later")])]));
    assert_eq!(ask(&bench, Quick::GroupDelete(group())).await, AdminReply::Done);
    ask(&bench, Quick::GroupAdd(group(), vec![web.clone()])).await;
    assert_eq!(bench.visible(&web).len(), 0, "a new group of that name has none of the old one's exports");
}

#[tokio::test]
async fn a_record_that_can_be_read_is_never_removed_as_damaged() {
    let bench = Bench::open().await;
    bench.publish("a@1", "one").await;
    for key in ["generation/a/1", "generation/a/2", "", "lists"] {
        let refused = refused(&bench, Quick::RemoveDamaged(key.to_owned())).await;
        assert!(refused.contains(&format!("there is no damaged record '{key}'")), "{refused}");
    }
    assert_eq!(names(&bench, None).await, ["a@1"]);
    assert_eq!(ask(&bench, Quick::Damaged).await, AdminReply::Damaged(Vec::new()));
}
