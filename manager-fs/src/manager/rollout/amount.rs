//! How many hosts: a number of them, or a share of those that there are.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of hosts, or a share of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Amount {
    /// So many hosts.
    Hosts(u32),
    /// So many of a hundred, 1 to 100.
    Percent(u8),
}

/// A text is no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no number of hosts: want one like 5, or a share like 10%, of at most 100%")]
pub struct NotAnAmount(String);

impl Amount {
    /// How many hosts these are of `total`: never more than there are; of a share at least one, rounded up.
    pub fn of(self, total: u32) -> u32 {
        match self {
            Amount::Hosts(hosts) => hosts.min(total),
            Amount::Percent(percent) => {
                let share = (u64::from(total) * u64::from(percent)).div_ceil(100);
                u32::try_from(share).map_or(total, |share| share.min(total))
            }
        }
    }
}

impl FromStr for Amount {
    type Err = NotAnAmount;

    fn from_str(text: &str) -> Result<Self, NotAnAmount> {
        let bad = || NotAnAmount(text.chars().take(40).collect());
        match text.strip_suffix('%') {
            Some(percent) => {
                let percent = percent.trim_end().parse().ok().filter(|percent| (1..=100).contains(percent));
                percent.map(Amount::Percent).ok_or_else(bad)
            }
            None => text.parse().map(Amount::Hosts).map_err(|_| bad()),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amount::Hosts(hosts) => write!(f, "{hosts}"),
            Amount::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_amount_is_read_as_it_is_written() {
        for (text, amount) in [("5", Amount::Hosts(5)), ("0", Amount::Hosts(0)), ("10%", Amount::Percent(10))] {
            assert_eq!(text.parse(), Ok(amount));
            assert_eq!(amount.to_string(), text);
        }
        assert_eq!("10 %".parse(), Ok(Amount::Percent(10)));
        for bad in ["", "%", "0%", "101%", "-1", "1.5", "ten", "4294967296", "1%%"] {
            let error = bad.parse::<Amount>().unwrap_err();
            assert!(error.to_string().contains(&format!("'{bad}'")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_share_is_at_least_one_host_and_never_more_than_there_are(total: u32, percent in 1..=100_u8, hosts: u32) {
            let share = Amount::Percent(percent).of(total);
            prop_assert!(share <= total && (share > 0) == (total > 0));
            prop_assert_eq!(Amount::Percent(100).of(total), total);
            prop_assert_eq!(Amount::Hosts(hosts).of(total), hosts.min(total));
        }
    }
}
