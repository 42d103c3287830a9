//! A plan as people write it (`docs/rollouts.md`): one TOML file. Every refusal names the line.

use std::collections::BTreeSet;
use std::fmt;

use proto::name::Target;
use proto::{GenerationRef, Product};
use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use toml::Spanned;

use super::amount::Amount;
use super::plan::{Gates, JobGate, Plan, RING_NAME_BYTES_MAX, RINGS_MAX, RingPlan, TARGETS_MAX};
use crate::manager::hours::Hours;
use crate::manager::policy::schedule::NoSchedule;
use crate::manager::toml_text::{DurationFault, TomlFault, duration_ms, read};

/// Bytes of a plan's text.
const TEXT_BYTES_MAX: usize = 256 << 10;
/// The longest of all times: nobody watches a rollout for longer than a year.
const TIME_MS_MAX: u64 = 366 * 24 * 3600 * 1000;
const PATIENCE_MS: u64 = 30 * 60 * 1000;
const INCONCLUSIVE_MS: u64 = 60 * 60 * 1000;
const REPLACEMENTS: u32 = 3;
const IN_FLIGHT: Amount = Amount::Percent(10);
const JOBS_MIN: u32 = 10;
const BELOW_BASELINE: u8 = 5;

/// Why a text is no plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NotAPlan {
    /// More than is read.
    #[error("the plan cannot be used: it has {0} bytes; {TEXT_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// It is no TOML, or says what a plan does not say.
    #[error("the plan cannot be used: {0}")]
    Toml(#[from] TomlFault),
    /// Nobody to change over, or more steps than anybody can follow.
    #[error("the plan cannot be used: it has {0} rings ([[ring]]); want 1 to {RINGS_MAX}")]
    Rings(usize),
    /// What it says in one place cannot be.
    #[error("the plan cannot be used: line {line}: {fault}")]
    Line {
        /// The number of the line, from 1.
        line: usize,
        /// What is wrong there.
        fault: PlanFault,
    },
}

/// What is wrong with one part of a plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanFault {
    /// A generation of something else.
    #[error("{generation} is not of {product}, whose plan this is")]
    Product {
        /// The generation.
        generation: GenerationRef,
        /// The plan's product.
        product: Product,
    },
    /// A name that no file or column could hold.
    #[error(
        "'{}' is no name of a ring: want 1 to {RING_NAME_BYTES_MAX} letters, digits, '.', '_', '-'",
        .0.escape_debug()
    )]
    RingName(String),
    /// Two rings of one name.
    #[error("there is a ring '{0}' already")]
    Twice(String),
    /// A ring of nobody, or of more than one ring may have.
    #[error("ring '{ring}' is to {count} hosts and groups; want 1 to {TARGETS_MAX}")]
    Targets {
        /// Its name.
        ring: String,
        /// How many it names.
        count: usize,
    },
    /// Hours in which nobody could change over, or of no day.
    #[error("window of ring '{ring}': {fault}")]
    Window {
        /// Its name.
        ring: String,
        /// What is wrong with it.
        fault: NoSchedule,
    },
    /// A ring that would never come to its end.
    #[error("in-flight of ring '{0}' is 0: nobody would ever change over")]
    NobodyInFlight(String),
}

/// Why a text is no time or share that a plan can have.
#[derive(Debug, thiserror::Error)]
enum AmountFault {
    #[error(transparent)]
    Duration(#[from] DurationFault),
    #[error("\"{0}\" is longer than a year")]
    TooLong(String),
    #[error("'{0}' is no share: want one such as \"95%\"")]
    Share(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct PlanText {
    product: Product,
    generation: Spanned<GenerationText>,
    #[serde(default)]
    export: bool,
    #[serde(default)]
    lazy: bool,
    drain_deadline: Option<Time>,
    #[serde(default)]
    rollback: bool,
    rollback_to: Option<Spanned<GenerationText>>,
    max_failures: Option<u32>,
    replacements: Option<u32>,
    patience: Option<Time>,
    inconclusive: Option<Time>,
    #[serde(default)]
    gates: GatesText,
    #[serde(default)]
    ring: Vec<Spanned<RingText>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RingText {
    name: String,
    to: Vec<TargetText>,
    wait: Option<Time>,
    canaries: Option<AmountText>,
    canary_soak: Option<Time>,
    in_flight: Option<AmountText>,
    #[serde(default)]
    max_failures: u32,
    soak: Option<Time>,
    min_hosts: Option<u32>,
    window: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct GatesText {
    jobs: Option<JobsText>,
    max_restarts: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct JobsText {
    min: Option<u32>,
    success: Option<Percent>,
    below_baseline: Option<Percent>,
}

impl Plan {
    /// Reads a plan.
    ///
    /// # Errors
    /// What is wrong, and in which line.
    pub fn parse(text: &str) -> Result<Self, NotAPlan> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(NotAPlan::TooLarge(text.len()));
        }
        let at = |start: usize, fault| {
            let line = 1 + text.get(..start).unwrap_or_default().matches('\n').count();
            NotAPlan::Line { line, fault }
        };
        let file: PlanText = read(text)?;
        let mut named = vec![&file.generation];
        named.extend(&file.rollback_to);
        for generation in named {
            check_product(&file.product, &generation.get_ref().0)
                .map_err(|fault| at(generation.span().start, fault))?;
        }
        if file.ring.is_empty() || file.ring.len() > RINGS_MAX {
            return Err(NotAPlan::Rings(file.ring.len()));
        }
        let mut names = BTreeSet::new();
        let mut rings = Vec::with_capacity(file.ring.len());
        for ring in file.ring {
            let start = ring.span().start;
            let ring = ring.into_inner().ring().map_err(|fault| at(start, fault))?;
            if !names.insert(ring.name.clone()) {
                return Err(at(start, PlanFault::Twice(ring.name)));
            }
            rings.push(ring);
        }
        // A plan that names no budget in all has that of its most generous ring.
        let most = rings.iter().map(|ring| ring.max_failures).max().unwrap_or(0);
        let ms = |time: Option<Time>, default| time.map_or(default, |time| time.0);
        Ok(Self {
            product: file.product,
            generation: file.generation.into_inner().0,
            export: file.export,
            lazy: file.lazy,
            drain_deadline_ms: file.drain_deadline.map(|time| time.0),
            rollback: file.rollback,
            rollback_to: file.rollback_to.map(|generation| generation.into_inner().0),
            max_failures: file.max_failures.unwrap_or(most),
            replacements: file.replacements.unwrap_or(REPLACEMENTS),
            patience_ms: ms(file.patience, PATIENCE_MS),
            inconclusive_ms: ms(file.inconclusive, INCONCLUSIVE_MS),
            gates: file.gates.gates(),
            rings,
        })
    }

    /// The plan of `upgrade` with canaries or batches: one ring, and nobody waits longer than the change-overs take.
    pub fn short(
        product: Product,
        generation: GenerationRef,
        to: Vec<Target>,
        canaries: Amount,
        batch: Amount,
    ) -> Self {
        let ring = RingPlan {
            name: String::from("all"),
            to,
            wait_ms: 0,
            canaries,
            canary_soak_ms: 0,
            in_flight: batch,
            max_failures: u32::MAX,
            soak_ms: 0,
            min_hosts: 1,
            hours: None,
        };
        Self {
            product,
            generation,
            export: false,
            lazy: false,
            drain_deadline_ms: None,
            rollback: false,
            rollback_to: None,
            max_failures: 0,
            replacements: REPLACEMENTS,
            patience_ms: PATIENCE_MS,
            inconclusive_ms: INCONCLUSIVE_MS,
            gates: Gates::default(),
            rings: vec![ring],
        }
    }
}

fn check_product(product: &Product, generation: &GenerationRef) -> Result<(), PlanFault> {
    match generation {
        GenerationRef::Named(named, _) if named != product => {
            Err(PlanFault::Product { generation: generation.clone(), product: product.clone() })
        }
        GenerationRef::Named(..) | GenerationRef::TreePrefix(_) => Ok(()),
    }
}

impl RingText {
    fn ring(self) -> Result<RingPlan, PlanFault> {
        let name = self.name;
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || name.len() > RING_NAME_BYTES_MAX || !name.chars().all(fits) {
            return Err(PlanFault::RingName(name));
        }
        if self.to.is_empty() || self.to.len() > TARGETS_MAX {
            return Err(PlanFault::Targets { ring: name, count: self.to.len() });
        }
        let in_flight = self.in_flight.map_or(IN_FLIGHT, |amount| amount.0);
        if in_flight == Amount::Hosts(0) {
            return Err(PlanFault::NobodyInFlight(name));
        }
        let hours = self.window.as_deref().map(str::parse::<Hours>).transpose();
        let hours = hours.map_err(|fault| PlanFault::Window { ring: name.clone(), fault })?;
        Ok(RingPlan {
            to: self.to.into_iter().map(|target| target.0).collect(),
            wait_ms: self.wait.map_or(0, |time| time.0),
            canaries: self.canaries.map_or(Amount::Hosts(1), |amount| amount.0),
            canary_soak_ms: self.canary_soak.map_or(0, |time| time.0),
            in_flight,
            max_failures: self.max_failures,
            soak_ms: self.soak.map_or(0, |time| time.0),
            min_hosts: self.min_hosts.unwrap_or(1),
            hours,
            name,
        })
    }
}

impl GatesText {
    fn gates(self) -> Gates {
        let jobs = self.jobs.map(|jobs| {
            // Whoever says neither wants to be compared.
            let default = if jobs.success.is_none() { Some(BELOW_BASELINE) } else { None };
            JobGate {
                min: jobs.min.unwrap_or(JOBS_MIN).max(1),
                success_percent: jobs.success.map(|percent| percent.0),
                below_baseline: jobs.below_baseline.map(|percent| percent.0).or(default),
            }
        });
        Gates { jobs, max_restarts: self.max_restarts }
    }
}

/// A value that is read out of a text or a number, in place, so that a refusal has its line.
macro_rules! from_text {
    ($name:ident, $of:ty, $want:literal, $read:expr) => {
        #[derive(Debug)]
        struct $name($of);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Reader;
                impl Visitor<'_> for Reader {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($want)
                    }

                    fn visit_str<E: Error>(self, text: &str) -> Result<$name, E> {
                        $read(text).map($name).map_err(E::custom)
                    }

                    fn visit_i64<E: Error>(self, number: i64) -> Result<$name, E> {
                        self.visit_str(&number.to_string())
                    }
                }
                deserializer.deserialize_any(Reader)
            }
        }
    };
}

from_text!(Time, u64, "a duration such as \"10m\"", time_ms);
from_text!(AmountText, Amount, "a number of hosts, or a share such as \"10%\"", str::parse::<Amount>);
from_text!(Percent, u8, "a share such as \"95%\"", percent);
from_text!(TargetText, Target, "a host, or @ and a group", str::parse::<Target>);
from_text!(GenerationText, GenerationRef, "a generation such as \"data-agent@2.1\"", str::parse::<GenerationRef>);

fn time_ms(text: &str) -> Result<u64, AmountFault> {
    let ms = duration_ms(text)?;
    if ms > TIME_MS_MAX { Err(AmountFault::TooLong(text.to_owned())) } else { Ok(ms) }
}

fn percent(text: &str) -> Result<u8, AmountFault> {
    match text.parse() {
        Ok(Amount::Percent(percent)) => Ok(percent),
        _ => Err(AmountFault::Share(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "product = \"a\"\ngeneration = \"a@2\"\n[[ring]]\nname = \"all\"\nto = [\"@all\"]\n";

    #[test]
    fn what_a_plan_does_not_say_is_careful() {
        let plan = Plan::parse(SMALL).unwrap();
        assert_eq!((plan.max_failures, plan.replacements, plan.rollback, plan.export), (0, 3, false, false));
        assert_eq!((plan.patience_ms, plan.inconclusive_ms), (1_800_000, 3_600_000));
        let ring = &plan.rings[0];
        assert_eq!((ring.canaries, ring.in_flight), (Amount::Hosts(1), Amount::Percent(10)));
        assert_eq!((ring.max_failures, ring.min_hosts, ring.soak_ms, ring.wait_ms), (0, 1, 0, 0));
        assert_eq!(plan.gates, Gates::default());
    }

    #[test]
    fn a_ring_has_hours_of_its_own_and_a_refusal_names_it() {
        let with = |window: &str| Plan::parse(&format!("{SMALL}window = \"{window}\"\n"));
        let read = with("22:00-06:00 Europe/Berlin").unwrap().rings.remove(0).hours;
        assert_eq!(read.unwrap().to_string(), "22:00-06:00 Europe/Berlin");
        let fault = with("22:00-22:00").unwrap_err().to_string();
        assert!(fault.contains("line 3: window of ring 'all': '22:00-22:00' is never open"), "{fault}");
        assert!(with("22:00-06:00 Mars").unwrap_err().to_string().contains("is no time zone"));
    }

    #[test]
    fn everything_that_can_be_said_is_read() {
        let text = r#"
            product        = "a"
            generation     = "a@2"
            export         = true
            lazy           = true
            drain-deadline = "20s"
            rollback       = true
            rollback-to    = "a@1"
            max-failures   = 7
            replacements   = 1
            patience       = "5m"
            inconclusive   = "10m"
            [gates]
            max-restarts   = 4
            jobs           = { min = 20, success = "90%", below-baseline = "3%" }
            [[ring]]
            name         = "first"
            to           = ["@lab", "host-7"]
            canaries     = 2
            canary-soak  = "10m"
            in-flight    = "25%"
            max-failures = 1
            soak         = "1h"
            min-hosts    = 3
            [[ring]]
            name = "rest"
            to   = ["@production"]
            wait = "1d"
            canaries = "1%"
        "#;
        let plan = Plan::parse(text).unwrap();
        assert_eq!(plan.rollback_to, Some("a@1".parse().unwrap()));
        assert_eq!((plan.export, plan.lazy, plan.rollback, plan.drain_deadline_ms), (true, true, true, Some(20_000)));
        assert_eq!((plan.max_failures, plan.replacements), (7, 1));
        let jobs = JobGate { min: 20, success_percent: Some(90), below_baseline: Some(3) };
        assert_eq!(plan.gates, Gates { jobs: Some(jobs), max_restarts: Some(4) });
        let [first, rest] = plan.rings.as_slice() else { panic!("{plan:?}") };
        assert_eq!((first.canary_soak_ms, first.soak_ms, first.min_hosts), (600_000, 3_600_000, 3));
        assert_eq!((first.in_flight, first.max_failures, first.to.len()), (Amount::Percent(25), 1, 2));
        assert_eq!((rest.wait_ms, rest.canaries), (86_400_000, Amount::Percent(1)));
    }

    #[test]
    fn a_refusal_names_the_line_and_the_fault() {
        let with = |line: &str| format!("{SMALL}{line}\n");
        let before = |line: &str| format!("{line}\n{SMALL}");
        let ring = "[[ring]]\nname = \"all\"\nto = [\"x\"]";
        let cases = [
            (with("soak = \"soon\""), "line 6", "soon"),
            (with("soak = \"400d\""), "line 6", "longer than a year"),
            (with("canaries = \"110%\""), "line 6", "110%"),
            (with("canaries = -1"), "line 6", "-1"),
            (with("in-flight = 0"), "line 3", "nobody would ever"),
            (with("max-failure = 1"), "line 6", "did you mean 'max-failures'?"),
            (before("generation = \"b@1\"").replace("generation = \"a@2\"\n", ""), "line 1", "is not of a"),
            (before("rollback-to = \"b@1\""), "line 1", "b@1 is not of a"),
            (with(ring), "line 6", "a ring 'all' already"),
            (with("[[ring]]\nname = \"a b\"\nto = [\"x\"]"), "line 6", "no name of a ring"),
            (with("[[ring]]\nname = \"b\"\nto = []"), "line 6", "to 0 hosts and groups"),
            (with("[[ring]]\nname = \"b\"\nto = [\"@-\"]"), "line 8", "group"),
            (SMALL.replace("\"@all\"", "\"@all\", 7.5"), "line 5", "a host, or @ and a group"),
            (String::from("product = \"a\"\ngeneration = \"a@2\"\n"), "0 rings", "want 1 to 64"),
            (with("[gates]\njobs = { success = 95 }"), "line 7", "no share"),
        ];
        for (text, place, fault) in cases {
            let error = Plan::parse(&text).unwrap_err().to_string();
            assert!(
                error.contains(place) && error.contains(fault),
                "want {place} and {fault}:\n{error}\n---\n{text}"
            );
        }
        let rings: String = (0..65).map(|n| format!("[[ring]]\nname = \"r{n}\"\nto = [\"x\"]\n")).collect();
        assert!(Plan::parse(&with(&rings)).unwrap_err().to_string().contains("66 rings"));
        assert!(Plan::parse(&" ".repeat(TEXT_BYTES_MAX + 1)).unwrap_err().to_string().contains("bytes"));
    }

    #[test]
    fn jobs_are_compared_unless_a_share_is_named() {
        let gate = |text: &str| Plan::parse(&format!("{SMALL}[gates]\njobs = {text}\n")).unwrap().gates.jobs.unwrap();
        assert_eq!(gate("{}"), JobGate { min: 10, success_percent: None, below_baseline: Some(5) });
        let named = JobGate { min: 1, success_percent: Some(99), below_baseline: None };
        assert_eq!(gate("{ min = 0, success = \"99%\" }"), named);
    }
}
