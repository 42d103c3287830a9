//! Every page, of what hosts may say at their worst.

use proto::agent::{
    AgentState, AgentStatus, ChangeId, JobId, Operation, Outcome, Progress, Repository, Step, StepEvent, Summary,
};
use proto::number::RolloutId;
use proto::record::Metadata;
use proto::{GenerationRecord, TreeId};

use super::*;
use crate::manager::admin::{
    AdminReply, AgentView, ArchitectureDiff, DiffEntry, DiffReport, Difference, GenerationView, HostView,
};
use crate::manager::control::jobs::{JobRecord, JobState};
use crate::manager::http::ask::pairs;
use crate::manager::http::caller::By;
use crate::manager::http::route::named;
use crate::manager::jobs::JobPage;
use crate::manager::policy::machine::vocabulary::Task;
use crate::manager::policy::{PolicyAnswer, ProtectionRow, ProtectionView, Risk, RunFact, Why};
use crate::manager::rollout::machine::vocabulary::{Counts, Jobs, Phase, State};
use crate::manager::rollout::{ProblemGroup, RingView, RolloutView, WindowView};

/// What somebody may say who wants to be markup, in text or in an attribute.
const HOSTILE: &str = "'\"><script src=//evil.example></script><img src=x onerror=alert(1)>&amp;";
/// As it must stand on a page.
const SHOWN: &str =
    "'&quot;&gt;&lt;script src=//evil.example&gt;&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;&amp;amp;";

fn hostile() -> String {
    HOSTILE.to_owned()
}

fn caller(role: Role) -> Caller {
    Caller { name: "on-call".parse().unwrap(), role, by: By::Session, form_key: Some("f0".repeat(32)) }
}

/// The page of an address, made of these replies.
fn shown_to(role: Role, address: &str, replies: Vec<AdminReply>) -> Result<String, Problem> {
    let (path, query) = address.split_once('?').unwrap_or((address, ""));
    let all = pages();
    let (page, path_names) = all.iter().find_map(|page| Some((page, named(page.path, path)?))).unwrap();
    assert!(role >= page.role, "{address}");
    let ask = Ask { path: path_names, query: pairs(query).unwrap(), body: Default::default(), role };
    assert_eq!((page.ask)(&ask)?.len(), replies.len(), "{address} asks for something else");
    let shown = (page.show)(&caller(role), &ask, Replies::new(replies))?;
    let text = super::page(&caller(role), path, &shown).into_string();
    check(address, &text);
    Ok(text)
}

fn shown(address: &str, replies: Vec<AdminReply>) -> String {
    shown_to(Role::Admin, address, replies).unwrap()
}

/// An element's beginning or end, as it stands in a page.
struct Tag<'a> {
    name: &'a str,
    ends: bool,
    attributes: Vec<(&'a str, &'a str)>,
}

impl Tag<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(of, _)| *of == name).map(|(_, value)| *value)
    }
}

/// The tags of a page, and the text between them. Values of attributes stand in double quotes.
fn tags(text: &str) -> (Vec<Tag<'_>>, String) {
    let (mut tags, mut between, mut rest) = (Vec::new(), String::new(), text);
    while let Some((before, after)) = rest.split_once('<') {
        between.push_str(before);
        let mut is_quoted = false;
        let end = after.find(|c| {
            is_quoted ^= c == '"';
            c == '>' && !is_quoted
        });
        let (tag, next) = after.split_at(end.expect("a tag that ends"));
        rest = &next[1..];
        let (ends, tag) = tag.strip_prefix('/').map_or((false, tag), |tag| (true, tag));
        let tag = tag.trim_end_matches('/');
        let (name, mut left) = tag.split_once(' ').unwrap_or((tag, ""));
        let mut attributes = Vec::new();
        while !left.trim().is_empty() {
            left = left.trim_start();
            let at = left.find([' ', '=']).unwrap_or(left.len());
            let (of, more) = left.split_at(at);
            let value = more.strip_prefix("=\"").and_then(|more| more.split_once('"'));
            assert!(value.is_some() || !more.starts_with('='), "a value without quotes: {left}");
            let (value, more) = value.unwrap_or(("", more));
            attributes.push((of, value));
            left = more;
        }
        tags.push(Tag { name, ends, attributes });
    }
    between.push_str(rest);
    (tags, between)
}

const WITHOUT_END: [&str; 5] = ["!DOCTYPE", "meta", "link", "input", "rect"];

/// What holds for every page, whoever said what stands on it.
fn check(address: &str, text: &str) {
    let (all, between) = tags(text);
    assert!(!between.contains(['<', '>']), "{address}: markup that is none: {text}");
    let (mut open, mut heading, mut ids) = (Vec::new(), 0, Vec::new());
    for tag in &all {
        assert!(!matches!(tag.name, "script" | "style" | "img" | "iframe" | "object" | "base"), "{address}: {text}");
        for (name, value) in &tag.attributes {
            assert!(!name.starts_with("on") && *name != "style" && *name != "srcset", "{address}: {name}");
            if matches!(*name, "href" | "src" | "action" | "formaction") {
                let within = value.starts_with('#') || (value.starts_with('/') && !value.starts_with("//"));
                assert!(within, "{address} leads elsewhere: {value}");
                assert!(!value.contains([' ', '<', '\\', '\'']), "{address}: {value}");
            }
        }
        ids.extend(tag.get("id"));
        if tag.ends {
            assert_eq!(open.pop().map(|tag: &Tag<'_>| tag.name), Some(tag.name), "{address}: {text}");
            continue;
        }
        let in_a = |name: &str| open.iter().any(|tag| tag.name == name);
        match tag.name {
            "h1" | "h2" | "h3" => {
                let level: u8 = tag.name[1..].parse().unwrap();
                assert!(level <= heading + 1, "{address}: {} after h{heading}", tag.name);
                heading = level;
            }
            "input" if tag.get("type") == Some("hidden") => {}
            "input" | "select" => assert!(in_a("label"), "{address}: nobody says what a field is for"),
            "td" => assert!(in_a("tbody") && in_a("tr"), "{address}: {text}"),
            "th" => assert!(in_a("thead"), "{address}: {text}"),
            "svg" => assert!(tag.get("role") == Some("img") && tag.get("aria-label").is_some(), "{address}"),
            "a" => assert!(!in_a("a") && !in_a("button"), "{address}: a link in a link"),
            "form" => assert!(!in_a("form"), "{address}: a form in a form"),
            _ => {}
        }
        if !WITHOUT_END.contains(&tag.name) {
            open.push(tag);
        }
    }
    assert!(open.is_empty(), "{address}: {} is open", open.len());
    let count = |wanted: &str| all.iter().filter(|tag| tag.name == wanted && !tag.ends).count();
    assert_eq!((count("h1"), count("main"), count("title")), (1, 1, 1), "{address}");
    let many = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(many, ids.len(), "{address}: an id twice");
    for part in text.split("<table").skip(1) {
        let table = part.split("</table>").next().unwrap_or_default();
        let heads = table.matches("<th>").count();
        assert!(heads > 0 && !table.contains("<th></th>"), "{address}: a column without a name: {table}");
        for row in table.split("<tbody>").nth(1).unwrap_or_default().split("<tr>").skip(1) {
            assert_eq!(row.matches("<td").count(), heads, "{address}: {table}");
        }
    }
    for form in text.split("<form").skip(1) {
        let form = form.split("</form>").next().unwrap_or_default();
        let key = format!("<input type=\"hidden\" name=\"form_key\" value=\"{}\">", "f0".repeat(32));
        assert!(form.contains("method=\"get\"") != form.contains(&key), "{address}: {form}");
        assert!(form.contains("method=\"post\"") == form.contains(&key), "{address}: {form}");
    }
}

fn host(number: usize) -> HostView {
    HostView {
        name: format!("host-{number:04}").parse().unwrap(),
        connected_since: number.is_multiple_of(2).then_some(5),
        last_seen: 3,
        enrolled: 1,
        certificate_expires: Some(9),
        revoked: number.is_multiple_of(5).then_some(7),
        groups: vec!["fra".parse().unwrap()],
        labels: Default::default(),
        software: hostile(),
        machine: Some(hostile()),
        attached: vec![tree()],
        wrong_hashes: vec![(4, hostile())],
    }
}

fn tree() -> TreeId {
    TreeId::of(b"a tree")
}

fn agent(number: usize, state: AgentState) -> AgentView {
    let (product, version) = ("data-agent".parse().unwrap(), "1.0+a~b:c".parse().unwrap());
    let step = StepEvent {
        change: ChangeId(1),
        product: "data-agent".parse().unwrap(),
        from: None,
        to: tree(),
        step: Step::ProbationFailed,
        at_unix_ms: 5,
        duration_us: 7,
        detail: hostile(),
    };
    let ended = StepEvent { step: Step::Returned, ..step.clone() };
    AgentView {
        host: host(number).name,
        connected: true,
        last_seen: 3,
        status: AgentStatus {
            product,
            version,
            tree: tree(),
            pid: 7,
            started_unix_ms: 2,
            state,
            jobs: Vec::new(),
            reason: hostile(),
        },
        last_change: vec![step, ended],
    }
}

fn job(number: u64, state: JobState) -> JobRecord {
    let summary = Summary { problems: vec![hostile()], ..Summary::default() };
    let progress =
        Progress { units_done: 0, units: 1, bytes_done: 0, bytes: 0, activity: hostile(), version: String::new() };
    JobRecord {
        id: JobId(number),
        host: host(1).name,
        product: "data-agent".parse().unwrap(),
        operation: Operation::Check {
            repository: Repository { path: "/r".into(), password_file: None },
            read_data: false,
        },
        run: None,
        state,
        created: number,
        started: None,
        ended: None,
        progress: (state == JobState::Running).then_some(progress),
        outcome: match state {
            JobState::Failed => Some(Outcome::Failed(hostile())),
            JobState::Done => Some(Outcome::Done(summary)),
            JobState::Cancelled => Some(Outcome::Cancelled(Summary::default())),
            _ => None,
        },
        waiting: (state == JobState::Queued).then(hostile),
        cancel: false,
        sent: 0,
    }
}

fn jobs() -> Vec<JobRecord> {
    let all = [JobState::Queued, JobState::Running, JobState::Done, JobState::Failed, JobState::Cancelled];
    all.into_iter().zip(1..).map(|(state, number)| job(number, state)).collect()
}

fn page_of(jobs: Vec<JobRecord>) -> AdminReply {
    AdminReply::Jobs(JobPage { jobs, more: false })
}

fn rollout(state: State) -> RolloutView {
    let window = WindowView { hours: hostile(), opens: Some(60_000) };
    let ring = RingView {
        name: hostile(),
        phase: Phase::Waves,
        since: 4,
        canaries: 1,
        in_flight: 2,
        before: Some("0.9".parse().unwrap()),
        hosts: Counts { good: 3, failed: 1, away: 4, ..Counts::default() },
        window: Some(window),
    };
    let open = RingView { window: Some(WindowView { hours: hostile(), opens: None }), ..ring.clone() };
    let problem =
        ProblemGroup { state: "failed".to_owned(), reason: hostile(), count: 30, hosts: vec![host(1).name] };
    RolloutView {
        id: RolloutId(7),
        product: "data-agent".parse().unwrap(),
        version: "2.0".parse().unwrap(),
        state,
        since: 4,
        planned: 1,
        started: Some(2),
        halted: (state == State::Halted).then(hostile),
        next: Some(5),
        rings: vec![ring, open],
        jobs: Jobs { done: 3, failed: 1 },
        baseline: Jobs::default(),
        restarts: 0,
        problems: vec![problem],
        lines: vec![(3, hostile())],
    }
}

fn generation(version: &str) -> GenerationView {
    let metadata = Metadata { architecture: Some(hostile()), ..Metadata::default() };
    let record = GenerationRecord {
        product: "data-agent".parse().unwrap(),
        version: version.parse().unwrap(),
        sequence: 1,
        tree: tree(),
        manifest_bytes: 1,
        published_unix_ms: 2,
        metadata,
    };
    GenerationView {
        record,
        others: Vec::new(),
        adapter: None,
        health_check: None,
        publisher: String::new(),
        exports: Vec::new(),
        attached: Vec::new(),
    }
}

fn protection() -> ProtectionView {
    let run = RunFact {
        job: JobId(3),
        due: 1,
        ordered: 2,
        ended: Some(3),
        state: JobState::Done,
        problems: 0,
        first_problem: None,
        error: None,
        snapshots: vec![hostile()],
    };
    let (task, job, why) = (Task::Backup, JobId(3), || Why::Failed(hostile()));
    let risks = vec![
        Risk::Never { task, why: why() },
        Risk::Old { task, age_ms: 7_200_000, promised_ms: 3_600_000, why: why() },
        Risk::Found { task, on: None, problems: 2, first: Some(hostile()), job },
        Risk::Unproved { task, why: hostile(), job },
    ];
    let row = ProtectionRow {
        host: host(1).name,
        policy: "nightly".parse().unwrap(),
        source: hostile(),
        backup: Some(run),
        verified: None,
        tested: None,
        rpo_ms: 3_600_000,
        risks,
    };
    let without_policy = (0..25).map(|number| host(number).name).collect();
    ProtectionView { rows: vec![row], at_risk: 1, sources: 2, without_policy }
}

fn fleet(of: Option<usize>) -> Vec<AdminReply> {
    let Some(many) = of else {
        let protection = AdminReply::Policy(PolicyAnswer::Protection(ProtectionView::default()));
        let (none, no_rollouts) = (AdminReply::Hosts(Vec::new()), AdminReply::Rollouts(Vec::new()));
        let (no_agents, no_generations) = (AdminReply::Agents(Vec::new()), AdminReply::Generations(Vec::new()));
        let no_damage = AdminReply::Damaged(Vec::new());
        return vec![none, no_agents, no_rollouts, no_generations, protection, page_of(Vec::new()), no_damage];
    };
    vec![
        AdminReply::Hosts((0..many).map(host).collect()),
        AdminReply::Agents((0..many).map(|number| agent(number, AgentState::Stopped)).collect()),
        AdminReply::Rollouts(vec![rollout(State::Halted), rollout(State::Running)]),
        AdminReply::Generations(vec![generation("1.0+a~b:c")]),
        AdminReply::Policy(PolicyAnswer::Protection(protection())),
        page_of(vec![job(4, JobState::Failed)]),
        AdminReply::Damaged(vec![(hostile(), hostile())]),
    ]
}

/// How often what is hostile stands there as text.
fn times(text: &str) -> usize {
    text.matches(SHOWN).count()
}

#[test]
fn the_fleet_names_what_is_broken_and_how_much_more_there_is() {
    let text = shown("/", fleet(Some(200)));
    // Why a rollout halted, eight agents, eight hosts with wrong hashes, a record, and what changed.
    assert!(times(&text) >= 1 + 8 + 8 + 2 + 2, "{}", times(&text));
    assert!(text.contains("and 192 more agents"));
    assert!(text.contains("halted: ") && text.contains(">1 source at risk</a> of 2"), "{text}");
    assert!(text.contains("href=\"/generations/data-agent%401.0%2Ba~b%3Ac\""), "{text}");
    assert!(text.len() < 100_000, "what is named is bounded: {}", text.len());
    assert!(text.contains("http-equiv=\"refresh\" content=\"30\""));
    for (only, many) in [("connected", 80), ("away", 80), ("revoked", 40)] {
        assert!(text.contains(&format!(">{many}</b><a href=\"/hosts?only={only}\">")), "{only}: {text}");
    }
}

#[test]
fn a_fleet_without_anything_says_so() {
    let text = shown("/", fleet(None));
    for said in ["Nothing that the manager knows of.", "Nothing yet.", "No host has reported an agent."] {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(!text.contains("class=\"bad\"") && !text.contains("at risk"), "{text}");
}

#[test]
fn hosts_are_searched_by_what_is_typed_whatever_that_is() {
    let query = crate::manager::http::ask::encoded(HOSTILE);
    let text = shown(&format!("/hosts?q={query}&only=away"), vec![AdminReply::Hosts((0..3).map(host).collect())]);
    assert!(text.contains(&format!("value=\"{SHOWN}\"")) && text.contains("No host is meant."), "{text}");
    assert!(text.contains("<option value=\"away\" selected>") && !text.contains("rel=\"next\""), "{text}");
    let many = (0..250).map(host).collect();
    let text = shown("/hosts?q=host&label=&only=", vec![AdminReply::Hosts(many)]);
    assert_eq!(text.matches("<tr><td").count(), 100);
    assert!(
        text.contains("href=\"/hosts?q=host&amp;label=&amp;only=&amp;after=host-0099\""),
        "the next page: {text}"
    );
    assert_eq!(times(&text), 100, "the software of each");
    for wrong in ["only=%22%3E", "label=%3Cb%3E", "of=..%2F", "after=%00", "limit=0"] {
        let refused = shown_to(Role::Viewer, &format!("/hosts?{wrong}"), vec![AdminReply::Hosts(Vec::new())]);
        assert_eq!(refused.map_err(|problem| problem.status).err(), Some(400), "{wrong}");
    }
}

#[test]
fn a_host_is_shown_with_how_its_agents_came_to_what_they_run() {
    let replies = |hosts: Vec<HostView>| {
        let agents = vec![agent(1, AgentState::Stopped), agent(2, AgentState::Serving)];
        vec![AdminReply::Hosts(hosts), AdminReply::Agents(agents), page_of(jobs())]
    };
    let text = shown("/hosts/host-0001", replies(vec![host(1)]));
    // Software, machine, wrong hash, reason, two steps, and four jobs that say something.
    assert_eq!(times(&text), 3 + 1 + 2 + 4, "{text}");
    assert!(text.contains("probation failed") && text.contains(">stopped<"), "{text}");
    assert_eq!(text.matches("<h3>").count(), 1, "agents of other hosts are not its own");
    assert!(text.find("waits: ") > text.find(">cancelled<"), "the newest job is the first: {text}");
    let gone = shown_to(Role::Viewer, "/hosts/host-0001", replies(Vec::new())).unwrap_err();
    assert_eq!((gone.status, gone.detail.as_str()), (404, "there is no host host-0001"));
    let wrong = shown_to(Role::Viewer, "/hosts/%2e%2e", replies(Vec::new())).unwrap_err();
    assert_eq!(wrong.status, 400);
}

#[test]
fn failures_are_shown_by_the_reason() {
    let agents = (0..30).map(|number| agent(number, AgentState::Stopped)).collect();
    let replies =
        |rollouts, agents| vec![AdminReply::Rollouts(rollouts), AdminReply::Agents(agents), page_of(jobs())];
    let text = shown("/failures", replies(vec![rollout(State::Halted)], agents));
    assert!(text.contains("host-0019") && !text.contains("host-0020") && text.contains('…'), "{text}");
    assert!(times(&text) >= 3, "{text}");
    let text = shown("/failures", replies(Vec::new(), vec![agent(1, AgentState::Serving)]));
    assert!(text.contains("None.") && !text.contains("/rollouts/"), "{text}");
}

#[test]
fn jobs_and_protection_say_what_is_at_risk_and_why() {
    let protection = AdminReply::Policy(PolicyAnswer::Protection(protection()));
    let text = shown("/work", vec![protection, page_of(jobs())]);
    // The source, four risks, and four jobs.
    assert_eq!(times(&text), 1 + 4 + 4, "{text}");
    assert!(text.contains("1 of 2 sources at risk") && text.contains("and 5 more"), "{text}");
    for class in ["bad", "warn", "busy", "good"] {
        assert!(text.contains(&format!("<span class=\"{class}\">")), "{class}: {text}");
    }
    let none = AdminReply::Policy(PolicyAnswer::Protection(ProtectionView::default()));
    let text = shown("/work", vec![none, page_of(Vec::new())]);
    assert!(text.contains("0 of 0 sources at risk") && !text.contains("<table"), "{text}");
    assert!(!text.contains("class=\"good\""), "where nothing is protected nothing is well: {text}");
}

#[test]
fn a_rollout_says_why_it_halted_and_what_can_be_wished_by_whom() {
    let reply = |state| vec![AdminReply::Rollout(Box::new(rollout(state)))];
    let text = shown("/rollouts/7", reply(State::Halted));
    // Why it halted, two rings and their hours, a reason, a line.
    assert_eq!(times(&text), 1 + 2 + 2 + 1 + 1, "{text}");
    assert!(text.contains("role=\"alert\">It stopped itself: ") && text.contains(", from "), "{text}");
    assert!(text.contains("3 of 8 good, 1 failed, 4 away"), "{text}");
    assert!(text.contains("3 of 4 done (75.0 %)") && text.contains("none ended"), "{text}");
    let wishes = |role, state| {
        let text = shown_to(role, "/rollouts/7", reply(state)).unwrap();
        let all = ["start", "pause", "resume", "abort", "rollback"].into_iter();
        all.filter(|wish| text.contains(&format!("href=\"/rollouts/7/{wish}\""))).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(wishes(Role::Operator, State::Halted), "resume abort rollback");
    assert_eq!(wishes(Role::Operator, State::Running), "pause abort rollback");
    assert_eq!(wishes(Role::Operator, State::Planned), "start abort");
    assert_eq!(wishes(Role::Operator, State::RolledBack), "");
    assert_eq!(wishes(Role::Viewer, State::Halted), "", "who may not is not asked to");
    assert!(!shown("/rollouts/7", reply(State::Done)).contains("refresh"), "what is over is not loaded anew");
    let text = shown("/rollouts", vec![AdminReply::Rollouts(vec![rollout(State::Halted), rollout(State::Done)])]);
    assert!(text.contains("class=\"bad\">halted<") && text.contains("6 of 16 good, 2 failed, 8 away"), "{text}");
    assert!(shown("/rollouts", vec![AdminReply::Rollouts(Vec::new())]).contains("manager-fs rollout plan FILE"));
}

#[test]
fn a_wish_is_asked_once_more_and_goes_back_to_its_rollout() {
    let reply = || vec![AdminReply::Rollout(Box::new(rollout(State::Running)))];
    for wish in ["start", "pause", "resume", "abort", "rollback"] {
        let text = shown_to(Role::Operator, &format!("/rollouts/7/{wish}"), reply()).unwrap();
        assert!(text.contains(&format!("method=\"post\" action=\"/rollouts/7/{wish}\"")), "{text}");
    }
    for wrong in ["/rollouts/7/delete", "/rollouts/7/%2e%2e", "/rollouts/7/pause%2f"] {
        let refused = shown_to(Role::Operator, wrong, reply()).map_err(|problem| problem.status);
        assert_eq!(refused.err(), Some(404), "{wrong}");
    }
    let all = orders();
    assert!(all.iter().all(|order| order.role >= Role::Operator), "a viewer orders nothing");
    let ask = |rollout: &str| Ask {
        path: vec![("rollout", rollout.to_owned()), ("wish", "pause".to_owned())],
        query: Vec::new(),
        body: Default::default(),
        role: Role::Operator,
    };
    assert_eq!((all[0].then)(&ask("7")).unwrap(), "/rollouts/7");
    for elsewhere in ["//evil.example", "7\r\nx: y", "..", ""] {
        assert!((all[0].then)(&ask(elsewhere)).is_err(), "{elsewhere}");
        assert!((all[0].ask)(&ask(elsewhere)).is_err(), "{elsewhere}");
    }
}

#[test]
fn generations_are_shown_with_who_runs_them_and_what_differs() {
    let (one, other) = (generation("1.0+a~b:c"), generation("2.0"));
    let agents = || AdminReply::Agents((0..60).map(|number| agent(number, AgentState::Serving)).collect());
    let all = || AdminReply::Generations(vec![one.clone(), other.clone()]);
    let text = shown("/generations", vec![all(), agents()]);
    assert!(text.contains("<td class=\"num\">60</td>"), "{text}");
    let text =
        shown("/generations/data-agent%401.0%2Ba~b%3Ac", vec![AdminReply::Generation(one.clone()), all(), agents()]);
    assert_eq!(times(&text), 1, "the architecture: {text}");
    let to_diff = "href=\"/diff?old=data-agent%402.0&amp;new=data-agent%401.0%2Ba~b%3Ac\"";
    assert!(text.contains(to_diff) && text.contains("60 agents") && !text.contains("host-0050"), "{text}");
    let none = vec![AdminReply::Generations(Vec::new()), AdminReply::Agents(Vec::new())];
    assert!(shown("/generations", none).contains("Nothing is published"));
}

#[test]
fn what_differs_is_shown_up_to_a_bound() {
    let entry = |difference| DiffEntry { path: hostile(), difference, what: hostile() };
    let found = |many: usize| {
        let all = [Difference::Added, Difference::Removed, Difference::Changed];
        let report = DiffReport {
            added: 1,
            removed: 1,
            changed: 1,
            equal: 0,
            new_object_bytes: 5,
            new_chunk_bytes: 4,
            entries: (0..many).map(|number| entry(all[number % 3])).collect(),
        };
        vec![AdminReply::Diff(vec![ArchitectureDiff { architecture: Some(hostile()), report }])]
    };
    let text = shown("/diff?old=p@1&new=p@2", found(3));
    assert!(times(&text) == 7 && text.contains("From p@1 to p@2") && !text.contains("and more"), "{text}");
    let text = shown("/diff?old=p@1&new=p@2", found(501));
    assert!(times(&text) == 1001 && text.contains("and more"), "{}", times(&text));
    for wrong in ["/diff", "/diff?old=p@1", "/diff?old=p@1&new=%3Cb%3E", "/diff?old=p@1&old=p@2&new=p@3"] {
        assert_eq!(shown_to(Role::Viewer, wrong, found(1)).map_err(|problem| problem.status).err(), Some(400));
    }
}

#[test]
fn a_page_of_other_replies_is_a_fault_that_is_said() {
    for (address, many) in
        [("/", 7), ("/hosts", 1), ("/hosts/a", 3), ("/work", 2), ("/failures", 3), ("/rollouts/7", 1)]
    {
        let replies = (0..many).map(|_| AdminReply::Done).collect();
        let problem = shown_to(Role::Admin, address, replies).unwrap_err();
        assert_eq!(problem.status, 500, "{address}");
    }
}

#[test]
fn whoever_is_nobody_sees_no_form_that_orders() {
    let text = sign_in_page(Some(HOSTILE)).into_string();
    assert!(times(&text) == 1 && text.contains("type=\"password\"") && !text.contains("form_key"), "{text}");
    let problem = Problem::bad_request(HOSTILE);
    let text = fault_page(&problem).into_string();
    check("a fault", &text);
    assert!(times(&text) == 1 && !text.contains("<form"), "{text}");
    assert!(!sign_in_page(None).into_string().contains("role=\"alert\""));
}

#[test]
fn where_one_is_stands_in_the_list_of_pages() {
    let here = |path: &str| {
        let shown = Shown::new("A page", maud::html! {});
        let text = super::page(&caller(Role::Viewer), path, &shown).into_string();
        let mut marked = text.split("<a ").filter(|link| link.contains("aria-current=\"page\""));
        let found = marked.next().and_then(|link| link.split('"').nth(1)).unwrap_or_default().to_owned();
        assert!(marked.next().is_none(), "{path}: two places at once");
        found
    };
    assert_eq!(["/", "/hosts", "/hosts/a", "/hostsx", "/diff"].map(here), ["/", "/hosts", "/hosts", "", ""]);
}
