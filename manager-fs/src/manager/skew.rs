//! Which versions may be together: manager >= media agents >= data agents (`docs/storage-operations.md`).
//!
//! ```text
//! what is ordered  x  who is there  ->  together, or why not
//! ```
//! Pure: no I/O, no clock. Every order that changes versions is held against it, `upgrade` and `rollout plan` alike.

use proto::HostName;
use serde::Deserialize;

/// The newest that this manager knows how to order: what agents and managers say to each other has a number that grows
/// by one with each thing that an earlier version does not understand.
pub const SPEAKS: u32 = 3;

/// Which part an agent has in a company of agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks after repositories, and serves them.
    Media,
    /// Reads and writes its host's data, and uses repositories.
    Data,
}

/// What a generation says of itself: `[company]` of its product file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Standing {
    /// Its part.
    pub role: Role,
    /// The newest that it says and understands.
    pub speaks: u32,
    /// The oldest data agents that a media agent still answers; at most what it speaks.
    pub hears: u32,
}

/// An agent of a host, as it is or is ordered to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Where.
    pub host: HostName,
    /// Its generation, as people name it.
    pub name: String,
    /// What it says of itself.
    pub standing: Standing,
}

/// Versions that do not understand each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Skew {
    /// The manager comes first.
    #[error("{name} speaks {speaks}, and this manager knows what was said up to {SPEAKS}: upgrade the manager first")]
    BeyondManager {
        /// What was ordered.
        name: String,
        /// Its number.
        speaks: u32,
    },
    /// A data agent may say what its media agent does not know.
    #[error(
        "{data} speaks {speaks}, and {media} knows what was said up to {knows}: media agents come first on the way \
         up, and data agents on the way back"
    )]
    DataAhead {
        /// The data agent, with its host where it is there already.
        data: String,
        /// Its number.
        speaks: u32,
        /// The media agent, likewise.
        media: String,
        /// Its number.
        knows: u32,
    },
    /// A media agent does not answer a data agent any more.
    #[error(
        "{data} speaks {speaks}, and {media} answers from {hears} on: upgrade the data agents first \
         (`manager-fs host forget` for a host that is gone)"
    )]
    DataBehind {
        /// The data agent, with its host where it is there already.
        data: String,
        /// Its number.
        speaks: u32,
        /// The media agent, likewise.
        media: String,
        /// The oldest that it answers.
        hears: u32,
    },
}

/// Whether a generation may come among those that are there. Of `there` only those of the other part count, and who is
/// named `there` is named with its host, and with how many more are like it.
///
/// # Errors
/// See [`Skew`]. Of several reasons the first is said.
pub fn check(name: &str, ordered: Standing, there: &[Member]) -> Result<(), Skew> {
    if ordered.speaks > SPEAKS {
        return Err(Skew::BeyondManager { name: name.to_owned(), speaks: ordered.speaks });
    }
    let others = || there.iter().filter(|member| member.standing.role != ordered.role);
    let pair = |member: &Member| match ordered.role {
        Role::Data => (ordered, member.standing),
        Role::Media => (member.standing, ordered),
    };
    let named = |member: &Member, more: usize| {
        let more = if more == 0 { String::new() } else { format!(" (and {more} more)") };
        let other = format!("{} on {}{more}", member.name, member.host);
        if ordered.role == Role::Data { (name.to_owned(), other) } else { (other, name.to_owned()) }
    };
    let is_ahead = |member: &&Member| matches!(pair(member), (data, media) if data.speaks > media.speaks);
    if let Some(member) = others().find(is_ahead) {
        let (of_data, of_media) = pair(member);
        let (data, media) = named(member, others().filter(is_ahead).count() - 1);
        return Err(Skew::DataAhead { data, speaks: of_data.speaks, media, knows: of_media.speaks });
    }
    let is_behind = |member: &&Member| matches!(pair(member), (data, media) if data.speaks < media.hears);
    if let Some(member) = others().find(is_behind) {
        let (of_data, of_media) = pair(member);
        let (data, media) = named(member, others().filter(is_behind).count() - 1);
        return Err(Skew::DataBehind { data, speaks: of_data.speaks, media, hears: of_media.hears });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn standing(role: Role, speaks: u32, hears: u32) -> Standing {
        Standing { role, speaks, hears }
    }

    fn member(host: &str, name: &str, standing: Standing) -> Member {
        Member { host: host.parse().unwrap(), name: name.to_owned(), standing }
    }

    #[test]
    fn media_agents_go_first_upwards_and_last_on_the_way_back() {
        let (old, new) = (standing(Role::Media, 2, 1), standing(Role::Media, 3, 2));
        let (first, second, third) =
            (standing(Role::Data, 1, 1), standing(Role::Data, 2, 1), standing(Role::Data, 3, 1));
        let fleet = |media, data: &[Standing]| {
            let data = data.iter().enumerate().map(|(at, one)| member(&format!("web-{at}"), "d@1", *one));
            std::iter::once(member("vault", "m@1", media)).chain(data).collect::<Vec<_>>()
        };
        let refused = |name: &str, ordered, there: &[Member]| check(name, ordered, there).unwrap_err().to_string();
        assert_eq!(
            refused("d@3", third, &fleet(old, &[second])),
            "d@3 speaks 3, and m@1 on vault knows what was said up to 2: media agents come first on the way up, and \
             data agents on the way back"
        );
        assert_eq!(check("m@2", new, &fleet(old, &[second, second])), Ok(()));
        assert_eq!(check("d@3", third, &fleet(new, &[second])), Ok(()));
        let back = refused("m@1", old, &fleet(new, &[second, third, third]));
        assert!(back.starts_with("d@1 on web-1 (and 1 more) speaks 3, and m@1 knows"), "{back}");
        let left_behind = refused("m@2", new, &fleet(old, &[first, second, first]));
        assert!(left_behind.starts_with("d@1 on web-0 (and 1 more) speaks 1, and m@2 answers from 2 on"));
        assert!(refused("d@1", first, &fleet(new, &[])).contains("m@1 on vault answers from 2 on"));
        // Data agents say nothing to each other, and neither do media agents.
        assert_eq!(check("d@1", first, &fleet(old, &[third])), Ok(()));
        assert_eq!(check("m@1", old, &[member("v", "m@2", standing(Role::Media, 3, 3))]), Ok(()));
    }

    #[test]
    fn the_manager_is_not_behind_its_agents() {
        let refused = check("m@9", standing(Role::Media, SPEAKS + 1, 1), &[]).unwrap_err().to_string();
        assert_eq!(
            refused,
            format!("m@9 speaks 4, and this manager knows what was said up to {SPEAKS}: upgrade the manager first")
        );
        assert_eq!(check("m@9", standing(Role::Media, SPEAKS, 1), &[]), Ok(()));
    }

    proptest! {
        /// Whatever is ordered in whatever order, and refused or not: no data agent is ever ahead of a media agent, or
        /// behind what one answers.
        #[test]
        fn a_company_that_fits_stays_one(
            orders in proptest::collection::vec((0..2_usize, 0..3_usize, 1..=SPEAKS + 1, 1..=SPEAKS + 1), 0..60),
        ) {
            let mut hosts: [[Standing; 3]; 2] =
                [[standing(Role::Media, 1, 1); 3], [standing(Role::Data, 1, 1); 3]];
            for (role, host, speaks, hears) in orders {
                let of = [Role::Media, Role::Data][role];
                let ordered = standing(of, speaks, if of == Role::Media { hears.min(speaks) } else { 1 });
                let others = hosts.as_flattened().iter().map(|one| member("h", "x@1", *one));
                if check("x@2", ordered, &others.collect::<Vec<_>>()).is_ok() {
                    hosts[role][host] = ordered;
                }
                for media in hosts[0] {
                    prop_assert!(media.speaks <= SPEAKS);
                    for data in hosts[1] {
                        prop_assert!(data.speaks <= media.speaks && data.speaks >= media.hears);
                    }
                }
            }
        }
    }
}
