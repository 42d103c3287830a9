//! Every order in which steps can come, one after the other.

/// The choices of one run: those of an earlier one as far as they go, then always the first.
#[derive(Debug, Default)]
pub struct Choices {
    /// Which one, among how many.
    made: Vec<(usize, usize)>,
    at: usize,
}

impl Choices {
    /// One of several, of which there is at least one.
    ///
    /// # Panics
    /// The same choices did not lead to the same place, or there is nothing to choose.
    pub fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        if self.at == self.made.len() {
            self.made.push((0, among.len()));
        }
        let (chosen, of) = self.made[self.at];
        assert_eq!(of, among.len(), "the same choices lead to the same place");
        self.at += 1;
        among[chosen]
    }

    /// Whether there is another sequence: the last choice that can be another one is.
    fn next(&mut self) -> bool {
        self.at = 0;
        while let Some((chosen, of)) = self.made.pop() {
            if chosen + 1 < of {
                self.made.push((chosen + 1, of));
                return true;
            }
        }
        false
    }
}

/// Runs once for every sequence of choices; returns how often that was.
pub fn explore(mut run: impl FnMut(&mut Choices)) -> u64 {
    let (mut choices, mut runs) = (Choices::default(), 0);
    loop {
        run(&mut choices);
        runs += 1;
        if !choices.next() {
            return runs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sequence_comes_once() {
        let mut seen = Vec::new();
        let runs = explore(|choices| {
            let first = choices.pick(&['a', 'b']);
            // How many choices follow depends on what was chosen.
            let rest: String = (0..if first == 'a' { 2 } else { 1 }).map(|_| choices.pick(&['x', 'y'])).collect();
            seen.push(format!("{first}{rest}"));
        });
        assert_eq!(runs, 6);
        assert_eq!(seen, ["axx", "axy", "ayx", "ayy", "bx", "by"]);
    }
}
