//! A real Chromium without a screen, told what to do by its driver (WebDriver): as a person with a keyboard.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::needs;

/// The Tab key, as the driver writes it.
pub const TAB: &str = "\u{E004}";
/// The Enter key.
pub const ENTER: &str = "\u{E007}";

/// A browser while it is open.
pub struct Browser {
    driver: Child,
    session: String,
    files: tempfile::TempDir,
}

impl Browser {
    /// Opens one, with a window of this size in pixels, that takes every certificate.
    ///
    /// # Panics
    /// Chromium or its driver is not installed, which is listed.
    #[track_caller]
    pub fn open(width: u32, height: u32, dark: bool) -> Self {
        needs::demand(needs::program("chromium"));
        needs::demand(needs::program("chromedriver"));
        let files = tempfile::tempdir().unwrap();
        let mut driver = Command::new("chromedriver");
        driver.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = driver.spawn().unwrap();
        let mut said = BufReader::new(driver.stdout.take().unwrap()).lines();
        let line =
            said.find(|line| line.as_ref().is_ok_and(|line| line.contains("successfully on port"))).unwrap().unwrap();
        let port = line.rsplit("on port").next().unwrap().trim().trim_end_matches('.').to_owned();
        // What it says further on must not fill the pipe.
        std::thread::spawn(move || said.for_each(drop));
        let mut arguments = vec![
            "--headless=new".to_owned(),
            // A container's root has no sandbox, and its /dev/shm is small.
            "--no-sandbox".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-gpu".to_owned(),
            "--hide-scrollbars".to_owned(),
            format!("--user-data-dir={}", files.path().join("profile").display()),
        ];
        if dark {
            arguments.push("--blink-settings=preferredColorScheme=0".to_owned());
        }
        let options = json!({ "args": arguments, "binary": which("chromium") });
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "acceptInsecureCerts": true,
            "goog:chromeOptions": options,
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let mut browser = Self { driver, session: format!("http://127.0.0.1:{port}/session"), files };
        let begun = browser.post("", &wanted);
        let id = begun["sessionId"].as_str().unwrap_or_else(|| panic!("no session: {begun}"));
        browser.session = format!("{}/{id}", browser.session);
        // A window is never as narrow as a telephone; what a page sees of it can be.
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        browser.developer("Emulation.setDeviceMetricsOverride", &metrics);
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        browser.developer("Emulation.setEmulatedMedia", &features);
        browser
    }

    /// Goes to an address.
    pub fn go(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// What a script says of the page: as a developer's tools do, past the page's own policy.
    pub fn ask(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// The page's text.
    pub fn text(&self) -> String {
        self.ask("return document.body.innerText").as_str().unwrap_or_default().to_owned()
    }

    /// Where it is, without host.
    pub fn path(&self) -> String {
        self.ask("return location.pathname").as_str().unwrap_or_default().to_owned()
    }

    /// Presses keys, one after the other, at whatever has the focus.
    pub fn press(&self, keys: &str) {
        let pressed = keys.chars().flat_map(|key| {
            let key = key.to_string();
            [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })]
        });
        let pressed: Vec<Value> = pressed.collect();
        self.post("/actions", &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": pressed }] }));
    }

    /// Presses Tab until what has the focus says this, and returns how often.
    ///
    /// # Panics
    /// The keyboard does not come to it.
    #[track_caller]
    pub fn tab_to(&self, label: &str) -> usize {
        let focused = "const at = document.activeElement; const named = at.labels?.[0]?.innerText; \
                       return (named ?? at.innerText ?? '').trim()";
        let mut seen = Vec::new();
        for pressed in 1..=80 {
            self.press(TAB);
            let at = self.ask(focused).as_str().unwrap_or_default().to_owned();
            if at == label {
                return pressed;
            }
            seen.push(at);
        }
        panic!("the keyboard does not come to '{label}' at {}: {seen:?}", self.path());
    }

    /// Chooses a file for the field of this name.
    pub fn choose(&self, name: &str, file: &Path) {
        let using = json!({ "using": "css selector", "value": format!("input[name={name}]") });
        let found = self.post("/element", &using);
        let id = found.as_object().and_then(|found| found.values().next()?.as_str()).unwrap().to_owned();
        self.post(&format!("/element/{id}/value"), &json!({ "text": file.to_str().unwrap() }));
    }

    /// What was written to the console since the last time, errors and warnings alone: also what the policy of content has
    /// kept from happening.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.post("/se/log", &json!({ "type": "browser" }));
        let all = log.as_array().cloned().unwrap_or_default().into_iter();
        let bad = all.filter(|line| ["SEVERE", "WARNING"].contains(&line["level"].as_str().unwrap_or_default()));
        bad.map(|line| line["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// A picture of the window (PNG).
    pub fn picture(&self, file: &Path) {
        let encoded = self.get("/screenshot");
        let text = self.files.path().join("picture");
        std::fs::write(&text, encoded.as_str().unwrap_or_default()).unwrap();
        let decoded = Command::new("base64").arg("-d").arg(&text).output().unwrap();
        assert!(decoded.status.success());
        std::fs::write(file, decoded.stdout).unwrap();
    }

    fn developer(&self, command: &str, params: &Value) {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": params }));
    }

    #[track_caller]
    fn post(&self, path: &str, body: &Value) -> Value {
        self.tell(path, &["-X", "POST", "-H", "Content-Type: application/json", "-d", &body.to_string()])
    }

    #[track_caller]
    fn get(&self, path: &str) -> Value {
        self.tell(path, &[])
    }

    #[track_caller]
    fn tell(&self, path: &str, more: &[&str]) -> Value {
        let url = format!("{}{path}", self.session);
        let output = Command::new("curl").args(["-sS", "--max-time", "60"]).args(more).arg(&url).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{url}: {error}: {text}"));
        let value = answer["value"].clone();
        assert!(value.get("error").is_none(), "{path}: {value}");
        value
    }
}

fn which(name: &str) -> String {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.map(|file| file.display().to_string()).unwrap_or_default()
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends its browser; what is left goes with it.
        let _ = Command::new("curl").args(["-sS", "-X", "DELETE", "--max-time", "10", &self.session]).output();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
