//! Numbers that look random and come the same in every run of a seed.

/// splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): every seed is a good one.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Another seed begins another row.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 up to `end`, without it; 0 where that is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.roll() % end.max(1)
    }

    /// A place in something that is so long.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }

    /// Whether something happens that does so `percent` times of a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of several.
    ///
    /// # Panics
    /// There is none.
    pub fn one<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.index(among.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_row_and_another_seed_another() {
        let row = |seed| {
            let mut dice = Dice::new(seed);
            [dice.roll(), dice.below(10), dice.below(0), dice.index(3) as u64]
        };
        assert_eq!(row(7), row(7));
        assert_ne!(row(7), row(8));
        assert_eq!(row(7)[2], 0);
        // The first numbers of the paper's own program for the seed 0.
        let mut dice = Dice::new(0);
        assert_eq!([dice.roll(), dice.roll()], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    }

    #[test]
    fn a_share_is_that_share() {
        let mut dice = Dice::new(1);
        let hits = (0..10_000).filter(|_| dice.chance(30)).count();
        assert!((2_800..3_200).contains(&hits), "{hits}");
        assert!((0..100).all(|_| !dice.chance(0) && dice.chance(100)));
    }
}
