//! What a campaign did, what it found, and how to see it again.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::io::sim::Variant;

/// How often what was done, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    /// Counts `n` more of `what`.
    pub fn add(&mut self, what: &'static str, n: u64) {
        *self.0.entry(what).or_default() += n;
    }

    /// How many of `what`.
    pub fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// Adds up with others.
    pub fn merge(&mut self, others: &Counts) {
        others.iter().for_each(|(what, n)| self.add(what, n));
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().map(|(what, n)| (*what, *n))
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (what, n)) in self.iter().enumerate() {
            write!(f, "{}{n} {}", if i > 0 { ", " } else { "" }, what.replace('_', " "))?;
        }
        Ok(())
    }
}

/// One case of a seed instead of all: what a violation says, and what `torture` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Case {
    /// Numbers of the calls that are made; `None` for all.
    pub calls: Option<Vec<u32>>,
    /// Where and how it goes wrong, as the campaign writes it; `None` for everywhere.
    pub at: Option<String>,
}

impl Case {
    /// The options of `torture` that name this case.
    pub fn options(&self) -> String {
        let mut text = String::new();
        if let Some(calls) = &self.calls {
            text += " --calls ";
            let mut from = 0;
            while from < calls.len() {
                let mut to = from;
                while calls.get(to + 1) == Some(&(calls[to] + 1)) {
                    to += 1;
                }
                let comma = if from > 0 { "," } else { "" };
                text += &match to - from {
                    0 => format!("{comma}{}", calls[from]),
                    _ => format!("{comma}{}-{}", calls[from], calls[to]),
                };
                from = to + 1;
            }
            if calls.is_empty() {
                text += "none";
            }
        }
        if let Some(at) = &self.at {
            text += &format!(" --at '{at}'");
        }
        text
    }

    /// Numbers as `--calls` has them: `0-3,7`, or `none`.
    ///
    /// # Errors
    /// What is no number.
    pub fn parse_calls(text: &str) -> Result<Vec<u32>, String> {
        let number = |text: &str| text.parse::<u32>().map_err(|e| format!("{text:?}: {e}"));
        let mut calls = Vec::new();
        for part in text.split(',').filter(|part| *part != "none") {
            match part.split_once('-') {
                Some((from, to)) => calls.extend(number(from)?..=number(to)?),
                None => calls.push(number(part)?),
            }
        }
        Ok(calls)
    }

    /// Those of `all` that are to be made.
    pub(crate) fn pick<T: Clone>(&self, all: &[T]) -> Vec<T> {
        match &self.calls {
            None => all.to_vec(),
            Some(calls) => calls.iter().filter_map(|i| all.get(*i as usize).cloned()).collect(),
        }
    }
}

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Of the workload.
    pub seed: u64,
    /// The smallest case of it that was found.
    pub case: Case,
    /// What was wrong.
    pub what: String,
}

impl Violation {
    pub(crate) fn new(seed: u64, at: impl Into<Option<String>>, what: String) -> Violation {
        Violation { seed, case: Case { calls: None, at: at.into() }, what }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}{}: {}", self.seed, self.case.options(), self.what)
    }
}

static MAKE_SMALL: AtomicBool = AtomicBool::new(true);

/// Leaves violations of this process as they are found, where only that there is one matters.
pub(crate) fn leave_as_found() {
    MAKE_SMALL.store(false, Ordering::Relaxed);
}

/// Leaves out what can be left out of `n` calls while `fails` still says what is wrong: the calls left, and that. At most
/// `tries` tries are made. Source: delta debugging after Zeller and Hildebrandt 2002, without complements.
pub(crate) fn shrink<T>(n: u32, mut tries: u32, mut fails: impl FnMut(&[u32]) -> Option<T>) -> Option<(Vec<u32>, T)> {
    if !MAKE_SMALL.load(Ordering::Relaxed) {
        return None;
    }
    let mut kept: Vec<u32> = (0..n).collect();
    let mut what = None;
    let mut size = kept.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        while at < kept.len() && tries > 0 {
            let mut fewer = kept.clone();
            fewer.drain(at..(at + size).min(kept.len()));
            tries -= 1;
            match fails(&fewer) {
                Some(found) => {
                    kept = fewer;
                    what = Some(found);
                }
                None => at += size,
            }
        }
        if size == 1 || tries == 0 {
            return what.map(|what| (kept, what));
        }
        size = size.div_ceil(2);
    }
}

/// Power cuts, one after the other, as `--at` has them: `45:AllLost/12:Random(7)`.
pub(crate) fn cuts_text(cuts: &[(usize, Variant)]) -> String {
    let cuts: Vec<_> = cuts.iter().map(|(moment, variant)| format!("{moment}:{variant:?}")).collect();
    cuts.join("/")
}

pub(crate) fn parse_cuts(text: &str) -> Result<Vec<(usize, Variant)>, String> {
    let one = |text: &str| {
        let (moment, variant) = text.split_once(':')?;
        Some((moment.parse().ok()?, variant.parse().ok()?))
    };
    text.split('/').map(|cut| one(cut).ok_or(format!("{cut:?} is no power cut"))).collect()
}

impl FromStr for Variant {
    type Err = ();

    fn from_str(text: &str) -> Result<Variant, ()> {
        let (name, number) = match text.split_once('(') {
            Some((name, number)) => (name, number.strip_suffix(')').ok_or(())?.parse::<u64>().map_err(|_| ())?),
            None => (text, 0),
        };
        let small = u32::try_from(number);
        Ok(match name {
            "AllLost" => Variant::AllLost,
            "AllKept" => Variant::AllKept,
            "WithoutOne" => Variant::WithoutOne(small.map_err(|_| ())?),
            "OnlyOne" => Variant::OnlyOne(small.map_err(|_| ())?),
            "LastTorn" => Variant::LastTorn(small.map_err(|_| ())?),
            "LastHeadless" => Variant::LastHeadless(small.map_err(|_| ())?),
            "ZeroTails" => Variant::ZeroTails,
            "GarbageTails" => Variant::GarbageTails(number),
            "Random" => Variant::Random(number),
            _ => return Err(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_reads_back_as_it_is_written() {
        for calls in [vec![], vec![3], vec![0, 1, 2, 7, 9, 10]] {
            let case = Case { calls: Some(calls.clone()), at: None };
            let text = case.options();
            assert_eq!(Case::parse_calls(text.strip_prefix(" --calls ").unwrap()).unwrap(), calls, "{text}");
        }
        let cuts = [(45, Variant::AllLost), (1, Variant::LastTorn(5)), (0, Variant::Random(u64::MAX))];
        assert_eq!(parse_cuts(&cuts_text(&cuts)).unwrap(), cuts);
        assert!(parse_cuts("45:Nothing").is_err() && parse_cuts("").is_err());
    }

    #[test]
    fn what_is_not_needed_is_left_out() {
        let (left, ()) = shrink(40, 200, |calls| (calls.contains(&7) && calls.contains(&31)).then_some(())).unwrap();
        assert_eq!(left, [7, 31]);
        assert!(shrink(5, 100, |_| None::<()>).is_none());
    }
}
