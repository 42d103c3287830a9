//! Programs that hold a tree, and the collector, in **every** order in which their steps can come. The steps are the very
//! methods that [`Generations`] calls, one lock or one call of the data path at a time, so what holds here holds for
//! threads.

use ::tests::choices::explore;

use super::tests::{Fake, Fixture, fixture, tree};
use super::*;

/// Where one program is that holds the tree for a while, as [`Generations::hold`] has it.
enum Holder {
    Before,
    Leased,
    /// Waits for its turn.
    InHand(Arc<Mutex<()>>),
    Looking(Arc<Mutex<()>>),
    Prepared(Arc<Mutex<()>>),
    Pinned(Arc<Mutex<()>>),
    /// Has been told the path.
    Holds,
    Over,
}

/// Where the collector is, as [`Generations::collect`] has it.
enum Collector {
    Before,
    /// With what stays, as it was read.
    Read(Kept),
    InHand(Arc<Mutex<()>>),
    Looking(Arc<Mutex<()>>),
    Unmounted,
    Over,
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Hold(usize),
    Collect,
}

struct World<'a> {
    fake: &'a Fake,
    generations: &'a Generations,
    holders: Vec<Holder>,
    collector: Collector,
    /// How often it looks again.
    passes: u32,
    /// Somebody is in the turn of the tree.
    taken: bool,
    /// Somebody waited for a turn.
    waited: bool,
}

impl World<'_> {
    fn possible(&mut self) -> Vec<Act> {
        let mut acts = Vec::new();
        for (n, holder) in self.holders.iter().enumerate() {
            match holder {
                Holder::Over => {}
                Holder::InHand(_) if self.taken => self.waited = true,
                _ => acts.push(Act::Hold(n)),
            }
        }
        match &self.collector {
            Collector::Over => {}
            Collector::InHand(_) if self.taken => self.waited = true,
            _ => acts.push(Act::Collect),
        }
        acts
    }

    fn hold(&mut self, n: usize) {
        let (generations, tree) = (self.generations, tree(1));
        let connection = u64::try_from(n).unwrap();
        let holder = std::mem::replace(&mut self.holders[n], Holder::Over);
        self.holders[n] = match holder {
            Holder::Before => {
                generations.leases.hold(connection, tree, None);
                Holder::Leased
            }
            Holder::Leased => Holder::InHand(generations.turn(&tree)),
            Holder::InHand(turn) => {
                self.taken = true;
                Holder::Looking(turn)
            }
            Holder::Looking(_) if lock(&generations.live).contains_key(&tree) => self.leave(Holder::Holds),
            Holder::Looking(turn) => {
                generations.trees.prepare(&tree, generations.deadline()).unwrap();
                Holder::Prepared(turn)
            }
            Holder::Prepared(turn) => {
                generations.pin(&tree);
                Holder::Pinned(turn)
            }
            Holder::Pinned(turn) => {
                generations.mount_prepared(&tree).unwrap();
                drop(turn);
                self.leave(Holder::Holds)
            }
            Holder::Holds => {
                assert!(generations.leases.connection_ended(connection));
                Holder::Over
            }
            Holder::Over => panic!("it is over"),
        };
    }

    fn leave(&mut self, to: Holder) -> Holder {
        self.taken = false;
        to
    }

    fn collect(&mut self) {
        let (generations, tree) = (self.generations, tree(1));
        let collector = std::mem::replace(&mut self.collector, Collector::Over);
        self.collector = match collector {
            Collector::Before => Collector::Read(generations.leases.kept()),
            Collector::Read(kept) if kept.keeps(&tree) || !lock(&generations.live).contains_key(&tree) => {
                Collector::Unmounted
            }
            Collector::Read(_) => Collector::InHand(generations.turn(&tree)),
            Collector::InHand(turn) => {
                self.taken = true;
                Collector::Looking(turn)
            }
            Collector::Looking(turn) => {
                generations.unmount_in_turn(&tree).unwrap();
                drop(turn);
                self.taken = false;
                Collector::Unmounted
            }
            Collector::Unmounted => {
                generations.tidy();
                self.passes -= 1;
                if self.passes > 0 { Collector::Before } else { Collector::Over }
            }
            Collector::Over => panic!("it is over"),
        };
    }

    /// Whoever was told a path has what it needs there, as long as it holds it.
    fn check(&self) {
        if self.holders.iter().any(|holder| matches!(holder, Holder::Holds)) {
            let tree = tree(1);
            assert!(self.fake.is_mounted(&tree), "a tree that is held is not mounted");
            assert!(self.fake.is_pinned(&tree), "a tree that is held may be evicted");
            assert!(self.fake.is_known(&tree), "of a tree that is held nothing is known any more");
        }
    }

    /// Nothing can happen any more: what nobody holds is gone, with all that was noted of it.
    fn check_end(&self) {
        self.generations.collect();
        let tree = tree(1);
        assert!(!self.fake.is_mounted(&tree) && !self.fake.is_pinned(&tree), "something is left of it");
        assert!(lock(&self.generations.turns).is_empty(), "a turn is left that nobody takes");
    }
}

/// Of so many programs that begin to hold the tree, beside one that holds it already if `held`; returns how many schedules
/// there are, and in how many somebody waited for a turn.
fn all_orders(begin: usize, held: bool, passes: u32) -> (u64, u64) {
    let Fixture { dir: _dir, fake, generations } = fixture();
    // Exported to nobody here: what is noted of it is forgotten with the last reason to keep it.
    generations.records.set_exports(vec![]);
    let mut waited = 0;
    let all = explore(|choices| {
        let mut world = World {
            fake: &fake,
            generations: &generations,
            holders: (0..begin + usize::from(held)).map(|_| Holder::Before).collect(),
            collector: if passes > 0 { Collector::Before } else { Collector::Over },
            passes,
            taken: false,
            waited: false,
        };
        while held && !matches!(world.holders[0], Holder::Holds) {
            world.hold(0);
        }
        loop {
            let possible = world.possible();
            if possible.is_empty() {
                break;
            }
            match choices.pick(&possible) {
                Act::Hold(n) => world.hold(n),
                Act::Collect => world.collect(),
            }
            world.check();
        }
        world.check_end();
        waited += u64::from(world.waited);
    });
    println!("{begin} begin, held: {held}, {passes} collections: {all} schedules, in {waited} somebody waits");
    (all, waited)
}

#[test]
fn in_every_order_a_held_tree_is_mounted_pinned_and_known_and_then_nothing_is_left() {
    let two = all_orders(2, false, 0);
    let again = all_orders(1, false, 2);
    let instead = all_orders(1, true, 1);
    assert!(two.1 > 100 && again.0 > 1_000 && instead.1 > 10, "{two:?} {again:?} {instead:?}");
}
