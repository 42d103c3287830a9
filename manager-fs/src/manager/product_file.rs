//! `manager-fs.toml`: what a product says about itself (`docs/product-file.md`).

use std::net::SocketAddr;
use std::time::Duration;

use super::skew::{Role, Standing};
use super::toml_text::{self, DurationFault, TomlFault, read};
use proto::adapter::{Adapter, Drain, Handover, Listen, ListenAddress, NotASignal, Variable};
use proto::health::{HealthCheck, HealthProbe};
use proto::limits::{ARGUMENTS_MAX, ENVIRONMENT_MAX, LISTEN_MAX, LISTEN_NAME_BYTES_MAX, UNIX_PATH_BYTES_MAX};
use proto::record::SchemaRange;
use serde::Deserialize;

const DRAIN_DEADLINE: Duration = Duration::from_secs(60);
const PROBATION: Duration = Duration::from_secs(10);
/// How long a program that knows nothing of a drain has between the signal and its end.
const ADAPTER_DEADLINE: Duration = Duration::from_secs(30);
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// What is wrong with a product file, and what is wanted there.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProductFileFault {
    /// It is not what the page says, or no TOML at all.
    #[error(transparent)]
    Toml(#[from] TomlFault),
    /// A range that ends before it begins.
    #[error("state_schemas = [{min}, {max}]: want the oldest and the newest, in this order")]
    Schemas {
        /// The first number.
        min: u32,
        /// The second one.
        max: u32,
    },
    /// No duration.
    #[error("{key} = {fault}")]
    Duration {
        /// What it is the duration of.
        key: &'static str,
        /// What is wrong with it.
        fault: DurationFault,
    },
    /// A duration in which nothing can be asked.
    #[error("{0} is shorter than 10 ms")]
    TooShort(&'static str),
    /// A health that takes longer to tell than anybody waits.
    #[error("health.timeout is longer than 60s: whoever waits for the answer would not")]
    TooPatient,
    /// Several ways to ask, or none.
    #[error("[health] wants one of http, socket and command")]
    HealthKind,
    /// A command of no words.
    #[error("health.command is empty")]
    NoCommand,
    /// Another URL than one of this host.
    #[error("health.http = \"{0}\": want such as \"http://127.0.0.1:8080/\"")]
    Url(String),
    /// No address with a port.
    #[error("{key} = \"{text}\": want an address and a port, such as \"0.0.0.0:80\" or \"[::]:80\"")]
    Address {
        /// What should be there.
        key: String,
        /// What is.
        text: String,
    },
    /// A list that is too long.
    #[error("{key} has {count} entries, at most {max}")]
    Many {
        /// Which list.
        key: &'static str,
        /// How many it has.
        count: usize,
        /// How many it may have.
        max: usize,
    },
    /// A signal that no program is ended by.
    #[error("drain.signal = \"{text}\": {fault}")]
    Signal {
        /// What is there.
        text: String,
        /// What is wrong with it.
        fault: NotASignal,
    },
    /// Two sockets of one name.
    #[error("adapter.listen has the name '{0}' twice")]
    Twice(String),
    /// Nothing could be handed over.
    #[error(
        "handover = \"sockets\" without a socket in adapter.listen; a program that binds for itself is handed over by \
         \"overlap\" or \"restart\""
    )]
    NoSocket,
    /// Numbers that nobody could keep.
    #[error("[company] wants speaks of 1 or more, and hears (of a media agent alone) from 1 to speaks")]
    Company,
    /// A name that no environment has.
    #[error("adapter.environment: '{0}' is no variable")]
    Variable(String),
    /// A name that a service manager could not give.
    #[error("'{0}' is no name for a socket: want 1 to 64 letters, digits, '.', '-' or '_'")]
    SocketName(String),
    /// A path that no socket can have, or one that is somewhere else for everybody.
    #[error("unix of socket '{0}': want an absolute path of at most 107 bytes")]
    UnixPath(String),
    /// A socket of several kinds, or of none.
    #[error("socket '{0}' wants one of tcp, udp and unix")]
    SocketKind(String),
}

/// What a product says about itself.
#[derive(Debug)]
pub(super) struct ProductFile {
    pub(super) entrypoint: Option<String>,
    pub(super) arguments: Vec<String>,
    pub(super) state_schemas: SchemaRange,
    pub(super) drain_deadline_ms: u64,
    pub(super) probation_ms: u64,
    pub(super) health: Option<HealthCheck>,
    pub(super) adapter: Option<Adapter>,
    /// Its part among agents.
    pub(super) company: Option<Standing>,
    /// Libraries that its hosts have, beside those that every host has.
    pub(super) host_libraries: Vec<String>,
}

/// As it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    entrypoint: Option<String>,
    #[serde(default)]
    arguments: Vec<String>,
    state_schemas: Option<[u32; 2]>,
    drain_deadline: Option<String>,
    probation: Option<String>,
    health: Option<HealthText>,
    adapter: Option<AdapterText>,
    company: Option<CompanyText>,
    #[serde(default)]
    host_libraries: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CompanyText {
    role: Role,
    speaks: u32,
    hears: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HealthText {
    http: Option<String>,
    socket: Option<String>,
    command: Option<Vec<String>>,
    interval: Option<String>,
    timeout: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AdapterText {
    handover: Handover,
    #[serde(default)]
    listen: Vec<ListenText>,
    drain: Option<DrainText>,
    #[serde(default)]
    environment: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenText {
    name: String,
    tcp: Option<String>,
    udp: Option<String>,
    unix: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DrainText {
    signal: Option<String>,
    deadline: Option<String>,
}

impl ProductFile {
    /// Reads the file; an empty text is a product that says nothing.
    ///
    /// # Errors
    /// See [`ProductFileFault`].
    pub(super) fn parse(text: &str) -> Result<Self, ProductFileFault> {
        let text: Text = read(text)?;
        let state_schemas = match text.state_schemas {
            None => SchemaRange { min: 1, max: 1 },
            Some([min, max]) if min <= max => SchemaRange { min, max },
            Some([min, max]) => return Err(ProductFileFault::Schemas { min, max }),
        };
        Ok(Self {
            entrypoint: text.entrypoint,
            arguments: text.arguments,
            state_schemas,
            drain_deadline_ms: duration_ms("drain_deadline", text.drain_deadline.as_deref(), DRAIN_DEADLINE)?,
            probation_ms: duration_ms("probation", text.probation.as_deref(), PROBATION)?,
            health: text.health.map(HealthText::check).transpose()?,
            adapter: text.adapter.map(AdapterText::adapter).transpose()?,
            company: text.company.map(CompanyText::standing).transpose()?,
            host_libraries: text.host_libraries,
        })
    }
}

impl CompanyText {
    fn standing(self) -> Result<Standing, ProductFileFault> {
        let hears = self.hears.unwrap_or(1);
        let is_heard = self.hears.is_none() || self.role == Role::Media;
        let fits = self.speaks >= 1 && (1..=self.speaks).contains(&hears) && is_heard;
        let standing = Standing { role: self.role, speaks: self.speaks, hears };
        if fits { Ok(standing) } else { Err(ProductFileFault::Company) }
    }
}

impl HealthText {
    fn check(self) -> Result<HealthCheck, ProductFileFault> {
        let probe = match (self.http, self.socket, self.command) {
            (Some(url), None, None) => http(&url)?,
            (None, Some(text), None) => HealthProbe::Socket(address("health.socket", &text)?),
            (None, None, Some(command)) if command.is_empty() => return Err(ProductFileFault::NoCommand),
            (None, None, Some(command)) => HealthProbe::Command(bounded("health.command", command, ARGUMENTS_MAX)?),
            _ => return Err(ProductFileFault::HealthKind),
        };
        let of = |key, text: Option<String>, default| {
            let ms = duration_ms(key, text.as_deref(), default)?;
            if ms < 10 { Err(ProductFileFault::TooShort(key)) } else { Ok(ms) }
        };
        let interval_ms = of("health.interval", self.interval, HEALTH_INTERVAL)?;
        let timeout_ms = of("health.timeout", self.timeout, HEALTH_TIMEOUT)?;
        if timeout_ms > 60_000 {
            return Err(ProductFileFault::TooPatient);
        }
        Ok(HealthCheck { probe, interval_ms, timeout_ms })
    }
}

/// `http://ADDRESS:PORT/PATH`, of this host.
fn http(url: &str) -> Result<HealthProbe, ProductFileFault> {
    let want = || ProductFileFault::Url(url.to_owned());
    let rest = url.strip_prefix("http://").ok_or_else(want)?;
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if path.bytes().any(|byte| !byte.is_ascii_graphic()) || path.len() > 1024 {
        return Err(want());
    }
    let with_port = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let address = address("health.http", &with_port).map_err(|_| want())?;
    Ok(HealthProbe::Http { address, path: if path.is_empty() { "/".to_owned() } else { path.to_owned() } })
}

impl AdapterText {
    fn adapter(self) -> Result<Adapter, ProductFileFault> {
        let drain = self.drain.unwrap_or(DrainText { signal: None, deadline: None });
        let signal = drain.signal.as_deref().unwrap_or("SIGTERM");
        let fault = |fault| ProductFileFault::Signal { text: signal.to_owned(), fault };
        let signal = signal.parse().map_err(fault)?;
        let deadline_ms = duration_ms("drain.deadline", drain.deadline.as_deref(), ADAPTER_DEADLINE)?;
        let listen = self.listen.into_iter().map(ListenText::listen).collect::<Result<Vec<_>, _>>()?;
        let listen = bounded("adapter.listen", listen, LISTEN_MAX)?;
        if let Some(twice) = listen.iter().enumerate().find(|(i, l)| listen.iter().take(*i).any(|o| o.name == l.name))
        {
            return Err(ProductFileFault::Twice(twice.1.name.clone()));
        }
        if self.handover == Handover::Sockets && listen.is_empty() {
            return Err(ProductFileFault::NoSocket);
        }
        let environment = self.environment.into_iter().map(|(name, value)| {
            let fits = name.len() <= LISTEN_NAME_BYTES_MAX && !name.is_empty();
            let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if fits && plain && !value.contains('\0') {
                Ok(Variable { name, value })
            } else {
                Err(ProductFileFault::Variable(name))
            }
        });
        let environment = environment.collect::<Result<Vec<_>, _>>()?;
        let environment = bounded("adapter.environment", environment, ENVIRONMENT_MAX)?;
        Ok(Adapter { handover: self.handover, listen, drain: Drain { signal, deadline_ms }, environment })
    }
}

impl ListenText {
    fn listen(self) -> Result<Listen, ProductFileFault> {
        let name = self.name;
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
        if name.is_empty() || name.len() > LISTEN_NAME_BYTES_MAX || !plain {
            return Err(ProductFileFault::SocketName(name));
        }
        let at = match (self.tcp, self.udp, self.unix) {
            (Some(text), None, None) => ListenAddress::Tcp(address(&format!("tcp of socket '{name}'"), &text)?),
            (None, Some(text), None) => ListenAddress::Udp(address(&format!("udp of socket '{name}'"), &text)?),
            (None, None, Some(path)) if path.starts_with('/') && path.len() <= UNIX_PATH_BYTES_MAX => {
                ListenAddress::Unix(path)
            }
            (None, None, Some(_)) => return Err(ProductFileFault::UnixPath(name)),
            _ => return Err(ProductFileFault::SocketKind(name)),
        };
        Ok(Listen { name, at })
    }
}

fn address(key: &str, text: &str) -> Result<SocketAddr, ProductFileFault> {
    let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    let fault = |_| ProductFileFault::Address { key: key.to_owned(), text: text.to_owned() };
    numeric.as_deref().unwrap_or(text).parse().map_err(fault)
}

fn bounded<T>(key: &'static str, list: Vec<T>, max: usize) -> Result<Vec<T>, ProductFileFault> {
    let count = list.len();
    if count > max { Err(ProductFileFault::Many { key, count, max }) } else { Ok(list) }
}

fn duration_ms(key: &'static str, text: Option<&str>, default: Duration) -> Result<u64, ProductFileFault> {
    match text {
        None => Ok(u64::try_from(default.as_millis()).unwrap_or(u64::MAX)),
        Some(text) => toml_text::duration_ms(text).map_err(|fault| ProductFileFault::Duration { key, fault }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NGINX: &str = r#"
        [health]
        http = "http://127.0.0.1:8081"
        interval = "250ms"
        [adapter]
        handover = "sockets"
        listen = [
            { name = "http", tcp = "0.0.0.0:80" },
            { name = "dns", udp = "[::1]:53" },
            { name = "app", unix = "/run/app.sock" },
        ]
        drain = { signal = "SIGQUIT", deadline = "1m" }
        environment = { NGINX = "3;" }
    "#;

    #[test]
    fn an_adapter_is_read_whole() {
        let file = ProductFile::parse(NGINX).unwrap();
        let adapter = file.adapter.unwrap();
        let shown: Vec<_> = adapter.listen.iter().map(|l| format!("{} {}", l.name, l.at)).collect();
        assert_eq!(shown, ["http tcp 0.0.0.0:80", "dns udp [::1]:53", "app unix /run/app.sock"]);
        assert_eq!((adapter.drain.signal.to_string().as_str(), adapter.drain.deadline_ms), ("SIGQUIT", 60_000));
        assert_eq!(adapter.environment, [Variable { name: "NGINX".into(), value: "3;".into() }]);
        let health = file.health.unwrap();
        assert_eq!(health.probe.to_string(), "http://127.0.0.1:8081/");
        assert_eq!((health.interval_ms, health.timeout_ms), (250, 2000));
        let least = ProductFile::parse("[adapter]\nhandover = 'restart'").unwrap().adapter.unwrap();
        assert_eq!((least.drain.signal.to_string().as_str(), least.drain.deadline_ms), ("SIGTERM", 30_000));
    }

    #[test]
    fn a_part_among_agents_is_read() {
        let read = |text: &str| ProductFile::parse(text).unwrap().company;
        let media = Standing { role: Role::Media, speaks: 3, hears: 2 };
        assert_eq!(read("[company]\nrole = 'media'\nspeaks = 3\nhears = 2"), Some(media));
        let data = Standing { role: Role::Data, speaks: 2, hears: 1 };
        assert_eq!(read("[company]\nrole = 'data'\nspeaks = 2"), Some(data));
        assert_eq!(read(""), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let restart = |more: &str| format!("[adapter]\nhandover = 'restart'\n{more}");
        let many: String = (0..65).map(|n| format!("{{ name = 'n{n}', tcp = '[::]:{n}' }},")).collect();
        for (text, fault) in [
            ("[adapter]\nhandovr = 'restart'".to_owned(), "did you mean 'handover'?"),
            ("[heath]".to_owned(), "did you mean 'health'?"),
            ("[adapter]".to_owned(), "missing field `handover`"),
            ("[adapter]\nhandover = 'magic'".to_owned(), "unknown variant `magic`"),
            ("[adapter]\nhandover = 'sockets'".to_owned(), "without a socket"),
            (restart("listen = [{ name = 'a b', tcp = '[::]:1' }]"), "'a b' is no name"),
            (restart("listen = [{ name = 'a' }]"), "one of tcp, udp and unix"),
            (restart("listen = [{ name = 'a', tcp = 'example.org:80' }]"), "tcp of socket 'a' = \"example.org:80\""),
            (restart("listen = [{ name = 'a', unix = 'run' }]"), "an absolute path"),
            (restart("listen = [{ name = 'a', tcp = '[::]:1' }, { name = 'a', tcp = '[::]:2' }]"), "'a' twice"),
            (restart(&format!("listen = [{many}]")), "65 entries, at most 64"),
            (restart("drain = { signal = 'SIGKILL' }"), "SIGTERM, SIGINT, SIGQUIT"),
            (restart("drain = { deadline = 'late' }"), "drain.deadline = \"late\""),
            (restart("environment = { 'A=B' = '' }"), "'A=B' is no variable"),
            ("[company]\nrole = 'boss'\nspeaks = 1".to_owned(), "unknown variant `boss`"),
            ("[company]\nrole = 'data'\nspeaks = 0".to_owned(), "speaks of 1 or more"),
            ("[company]\nrole = 'data'\nspeaks = 2\nhears = 1".to_owned(), "of a media agent alone"),
            ("[company]\nrole = 'media'\nspeaks = 2\nhears = 3".to_owned(), "from 1 to speaks"),
            ("[health]".to_owned(), "one of http, socket and command"),
            ("[health]\nhttp = 'https://x/'".to_owned(), "http://127.0.0.1:8080/"),
            ("[health]\ncommand = []".to_owned(), "is empty"),
            ("[health]\nsocket = '80'".to_owned(), "health.socket = \"80\""),
            ("[health]\nsocket = '[::]:80'\ninterval = '0s'".to_owned(), "health.interval is shorter"),
            ("[health]\nsocket = '[::]:80'\ntimeout = '1h'".to_owned(), "health.timeout is longer"),
        ] {
            let error = ProductFile::parse(&text).unwrap_err().to_string();
            assert!(error.contains(fault), "{text}: {error}");
        }
    }
}
