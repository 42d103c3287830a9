//! `docs/console.md` in a real browser: by the keyboard alone, as narrow as a telephone, in the dark, and without a
//! complaint of the browser about what the policy of content forbids.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use tests::browser::{Browser, ENTER};
use tests::command::until;
use tests::repository::root;
use tests::web::Lab;
use tests::{Host, TreeFixture};

const PRODUCT: &str = "data-agent";
const DESCRIPTOR: &str = "drain_deadline = \"20s\"\nprobation = \"6s\"\n";
/// What a picture in the documents may have.
const PICTURE_BYTES_MAX: u64 = 100_000;

/// A person at a browser, who is not signed in yet.
struct Person<'a> {
    lab: &'a Lab,
    browser: Browser,
}

impl<'a> Person<'a> {
    fn at(lab: &'a Lab, width: u32, height: u32, dark: bool) -> Self {
        let browser = Browser::open(width, height, dark);
        browser.go(&format!("https://{}/", lab.address));
        Self { lab, browser }
    }

    /// The field for the token has the focus when the page is there.
    fn signs_in(&self, role: &str) {
        self.arrives("/sign-in");
        self.browser.press(self.lab.token(role));
        self.browser.press(ENTER);
        self.arrives("/");
    }

    #[track_caller]
    fn arrives(&self, path: &str) {
        until(&format!("the page {path} is there"), || (self.browser.path() == path).then_some(()));
    }

    /// Goes to what bears this label with Tab, and presses Enter: until it has led elsewhere, since a page that is about
    /// something that goes on may be loaded anew in between.
    #[track_caller]
    fn follows(&self, label: &str) {
        let before = self.browser.path();
        until(&format!("'{label}' leads on from {before}"), || {
            self.browser.tab_to(label);
            self.browser.press(ENTER);
            let since = std::time::Instant::now();
            while since.elapsed() < std::time::Duration::from_secs(2) {
                if self.browser.path() != before {
                    return Some(());
                }
            }
            None
        });
    }

    #[track_caller]
    fn reads(&self, words: &str) {
        until(&format!("the page says '{words}'"), || {
            let text = self.browser.text().to_lowercase();
            text.contains(&words.to_lowercase()).then_some(())
        });
    }

    /// The page needs no scrolling sideways, and is as dark as the browser wants it.
    #[track_caller]
    fn looks_right(&self, dark: bool) {
        let over = self.browser.ask("return document.documentElement.scrollWidth - window.innerWidth");
        assert!(over.as_i64().unwrap() <= 0, "{} is {over} pixels too wide", self.browser.path());
        let light = "const [r, g, b] = getComputedStyle(document.documentElement).backgroundColor.match(/[0-9.]+/g); \
                     const [x, y, z] = getComputedStyle(document.body).color.match(/[0-9.]+/g); \
                     return [+r + +g + +b, +x + +y + +z]";
        let light = self.browser.ask(light);
        let text = light[1].as_f64().unwrap();
        assert_eq!(text > 384.0, dark, "{}: the text's brightness is {text} of 765", self.browser.path());
    }

    /// A picture for the documents, where they are written anew; otherwise it is only taken.
    #[track_caller]
    fn shows(&self, name: &str) {
        let file = self.lab.manager.path(name);
        self.browser.picture(&file);
        let bytes = fs::metadata(&file).unwrap().len();
        assert!((1_000..PICTURE_BYTES_MAX).contains(&bytes), "{name}: {bytes} bytes");
        if std::env::var_os("MANAGER_FS_WRITE_DOCS").is_some() {
            let dir = root().join("docs/pictures");
            fs::create_dir_all(&dir).unwrap();
            fs::copy(&file, dir.join(name)).unwrap();
        }
    }

    #[track_caller]
    fn has_no_complaint(&self) {
        let complaints = self.browser.complaints();
        // The test's own manager has a certificate that the browser takes only because it was told to.
        let about: Vec<&String> = complaints.iter().filter(|line| !line.contains("favicon.ico")).collect();
        assert!(about.is_empty(), "{about:#?}");
    }
}

/// A manager with three hosts that run version 1, and a rollout of version 2 that was planned.
fn fleet(lab: &Lab) -> Vec<Host> {
    let manager = &lab.manager;
    manager.publish(PRODUCT, "1.0", TreeFixture::agent("1.0", "data", DESCRIPTOR).path());
    let names = ["web-1", "web-2", "web-3"];
    let mut hosts: Vec<Host> = names.iter().map(|name| Host::mounted(name, manager)).collect();
    manager.run(&["host", "label", "web-1", "site=fra"]).expect(0);
    manager.run(&["host", "group", "add", "lab", "web-1"]).expect(0);
    manager.run(&["host", "group", "add", "production", "web-2", "web-3"]).expect(0);
    manager.run(&["export", "data-agent@1.0", "--to", "@lab", "@production"]).expect(0);
    for host in &mut hosts {
        host.launch(PRODUCT);
    }
    for name in names {
        manager.wait_for_version(name, PRODUCT, "1.0");
    }
    manager.publish(PRODUCT, "2.0", TreeFixture::agent("2.0", "data", DESCRIPTOR).path());
    let plan = manager.path("plan.toml");
    let text = format!(
        "product = \"{PRODUCT}\"\ngeneration = \"{PRODUCT}@2.0\"\nexport = true\n\
         [[ring]]\nname = \"lab\"\nto = [\"@lab\"]\n\
         [[ring]]\nname = \"production\"\nto = [\"@production\"]\nwait = \"1d\"\n"
    );
    fs::write(&plan, text).unwrap();
    manager.run(&["rollout", "plan", plan.to_str().unwrap()]).expect(0);
    hosts
}

#[test]
fn a_person_with_a_keyboard_and_a_telephones_width_leads_a_rollout() {
    let lab = Lab::open();
    let _hosts = fleet(&lab);
    let person = Person::at(&lab, 400, 860, true);
    person.arrives("/sign-in");
    person.looks_right(true);
    person.signs_in("operator");
    person.reads("data-agent");
    person.looks_right(true);
    person.shows("console-fleet-narrow.png");

    person.follows("Rollouts");
    person.looks_right(true);
    person.follows("data-agent@2.0");
    person.reads("planned");
    // Everything is asked once more, and nothing is ordered by going there.
    person.follows("Start");
    person.reads("The canaries of the first ring are ordered at once");
    person.follows("Leave it");
    person.reads("planned");
    person.follows("Start");
    person.follows("Start");
    lab.manager.wait_for_version("web-1", PRODUCT, "2.0");
    person.reads("1 of 1 good");
    person.looks_right(true);
    person.follows("Pause");
    person.looks_right(true);
    person.shows("console-confirm-narrow.png");
    person.follows("Pause");
    person.reads("paused");
    assert_eq!(state(&lab), "paused");
    person.follows("Go on");
    person.follows("Go on");
    person.reads("running");
    person.shows("console-rollout-narrow.png");
    person.follows("Give up");
    person.follows("Give up");
    person.reads("aborted");
    assert_eq!(state(&lab), "aborted");

    person.follows("Hosts");
    person.looks_right(true);
    person.follows("web-1");
    person.reads("site=fra");
    person.looks_right(true);
    person.shows("console-host-narrow.png");
    for page in ["Failures", "Generations", "Jobs and protection", "Fleet"] {
        person.follows(page);
        person.looks_right(true);
    }
    person.has_no_complaint();
    // Whoever signs out is out.
    person.follows("Sign out");
    person.arrives("/sign-in");
}

fn state(lab: &Lab) -> String {
    lab.manager.run(&["rollout", "status", "--json"]).json()["state"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_wide_and_light_window_shows_the_same_and_viewers_are_offered_nothing() {
    let lab = Lab::open();
    let _hosts = fleet(&lab);
    lab.manager.run(&["rollout", "start"]).expect(0);
    lab.manager.wait_for_version("web-1", PRODUCT, "2.0");
    let person = Person::at(&lab, 1200, 860, false);
    person.signs_in("viewer");
    person.looks_right(false);
    person.shows("console-fleet.png");
    person.follows("Rollouts");
    person.follows("data-agent@2.0");
    person.reads("1 of 1 good");
    person.looks_right(false);
    person.shows("console-rollout.png");
    let offered = person.browser.ask("return document.querySelectorAll('main .acts a, main .acts button').length");
    assert_eq!(offered, 0, "a viewer is offered something to order");
    person.has_no_complaint();
    // Were something there that the policy forbids, the browser would say so.
    person.browser.ask("document.body.insertAdjacentHTML('beforeend', '<p style=\"color: red\">x</p>')");
    until("the browser complains", || (!person.browser.complaints().is_empty()).then_some(()));
}

#[test]
fn a_publisher_sends_an_archive_and_sees_its_generation() {
    let lab = Lab::open();
    let tree = TreeFixture::script("echo one", "");
    let archive = lab.manager.path("sample.tar");
    let tar = std::process::Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(tree.path()).arg(".").status();
    assert!(tar.unwrap().success());
    let person = Person::at(&lab, 400, 860, false);
    person.signs_in("publisher");
    person.follows("Generations");
    person.follows("Publish");
    person.looks_right(false);
    for (label, text) in [("Product", "sample"), ("Version", "1.0")] {
        person.browser.tab_to(label);
        person.browser.press(text);
    }
    // The window in which a file is chosen is not the page's.
    person.browser.choose("archive", &archive);
    person.follows("Publish");
    person.arrives("/generations/sample%401.0");
    person.reads("sample@1.0");
    person.has_no_complaint();
    let local = lab.manager.run(&["publish", "local", "1", archive.to_str().unwrap(), "--json"]).json();
    assert_eq!(lab.manager.run(&["show", "sample@1.0", "--json"]).json()["tree_id"], local["tree_id"]);
    lab.nothing_sent_stays();
    // Who may not publish is not offered it, and a form of another page brings nothing.
    let form = format!("archive=@{}", archive.display());
    let fields = ["-F", "product=x", "-F", "version=1", "-F", form.as_str()];
    lab.ask_as("publisher", "/publish", &fields).expect(403);
    lab.ask_as("operator", "/publish", &fields).expect(403);
    assert!(!lab.manager.run(&["generations"]).text().contains("x@1"));
}
