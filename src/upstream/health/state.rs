//! What is known of an endpoint's health, and what changes it. Pure: no clock, no I/O.

use strum::{FromRepr, IntoStaticStr, VariantArray};

/// Whether new connections go to an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromRepr, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub(crate) enum State {
    /// They do.
    #[default]
    Ready,
    /// It answers, but is not ready: no new ones while others are. Those it has stay; this is how API servers shut down.
    Unready,
    /// It does not answer as it should: no new ones while others do.
    Dead,
}

impl State {
    /// The value of `state` in logs and metrics.
    pub(crate) fn label(self) -> &'static str {
        self.into()
    }
}

/// What a check, or a connection, has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProbeResult {
    /// It is ready.
    Ready,
    /// It is alive, and says that it is not ready.
    Unready(String),
    /// It is not there: connecting or asking was refused or timed out.
    Unreachable(String),
    /// It is there, but not as it should be: a certificate that does not verify, an answer that is none.
    Wrong(String),
}

/// How many results in a row change the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Thresholds {
    /// To be ready, or at least alive, again.
    pub(crate) rise: u32,
    /// To be no longer ready, or no longer alive.
    pub(crate) fall: u32,
    /// To be unready, if the endpoint itself says so: that is no packet which may have been lost.
    pub(crate) unready: u32,
}

/// An endpoint's state, and the results that lead to the next. It begins as ready: whether it is will be seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct HealthState {
    state: State,
    cause: Box<str>,
    is_unreachable: bool,
    /// Findings in a row that were so.
    ready: u32,
    alive: u32,
    says_unready: u32,
    not_ready: u32,
    failed: u32,
    /// Connections in a row that it failed.
    failed_clients: u32,
}

impl HealthState {
    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// The last result that was not ready; empty while it is.
    pub(crate) fn cause(&self) -> &str {
        &self.cause
    }

    /// Whether it is dead because it is not there.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.state == State::Dead && self.is_unreachable
    }

    /// Whether it has said that it is not ready, but not often enough yet.
    pub(crate) fn is_about_to_be_unready(&self) -> bool {
        self.state == State::Ready && self.says_unready > 0
    }

    /// How many results in a row led to this state, if it is not ready.
    pub(crate) fn failures(&self) -> u32 {
        self.not_ready.max(self.failed_clients)
    }

    /// Takes in what a client's connection has found; the state before, if it is another one now. Clients are not to be
    /// trusted with more than this: what one finds counts only as long as no other finds the opposite.
    pub(crate) fn apply_client_result(&mut self, result: &ProbeResult, thresholds: Thresholds) -> Option<State> {
        let before = self.state;
        self.failed_clients = match result {
            ProbeResult::Ready | ProbeResult::Unready(_) => 0,
            ProbeResult::Unreachable(_) | ProbeResult::Wrong(_) => self.failed_clients.saturating_add(1),
        };
        if self.failed_clients >= thresholds.fall {
            self.state = State::Dead;
            // What checks found before does not count any more.
            self.ready = 0;
            self.alive = 0;
            if self.failed == 0 {
                self.note(result);
            }
        }
        (self.state != before).then_some(before)
    }

    fn note(&mut self, result: &ProbeResult) {
        if let ProbeResult::Unready(cause) | ProbeResult::Unreachable(cause) | ProbeResult::Wrong(cause) = result {
            self.cause = cause.as_str().into();
        }
        self.is_unreachable = matches!(result, ProbeResult::Unreachable(_));
    }

    /// Takes in what a check has found; the state before, if it is another one now.
    pub(crate) fn learn(&mut self, result: &ProbeResult, thresholds: Thresholds) -> Option<State> {
        let before = self.state;
        let (is_ready, is_alive) = match result {
            ProbeResult::Ready => (true, true),
            ProbeResult::Unready(_) => (false, true),
            ProbeResult::Unreachable(_) | ProbeResult::Wrong(_) => (false, false),
        };
        let count = |streak: u32, goes_on: bool| if goes_on { streak.saturating_add(1) } else { 0 };
        self.ready = count(self.ready, is_ready);
        self.alive = count(self.alive, is_alive);
        self.says_unready = count(self.says_unready, is_alive && !is_ready);
        self.not_ready = count(self.not_ready, !is_ready);
        self.failed = count(self.failed, !is_alive);
        self.note(result);
        if is_ready {
            self.failed_clients = 0;
        }
        self.state = match before {
            _ if self.ready >= thresholds.rise => State::Ready,
            _ if self.failed >= thresholds.fall => State::Dead,
            State::Ready if self.not_ready >= thresholds.fall || self.says_unready >= thresholds.unready => {
                State::Unready
            }
            State::Dead if self.alive >= thresholds.rise => State::Unready,
            same => same,
        };
        if self.state == State::Ready && is_ready {
            self.cause = "".into();
        }
        (self.state != before).then_some(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLDS: Thresholds = Thresholds { rise: 2, fall: 3, unready: 2 };

    fn after(results: &str) -> State {
        let mut health = HealthState::default();
        for result in results.chars() {
            let result = match result {
                'r' => ProbeResult::Ready,
                'u' => ProbeResult::Unready("u".into()),
                'g' => ProbeResult::Unreachable("g".into()),
                'w' => ProbeResult::Wrong("w".into()),
                other => panic!("{other}"),
            };
            health.learn(&result, THRESHOLDS);
        }
        health.state()
    }

    #[test]
    fn b11_it_takes_some_findings_in_a_row() {
        for results in ["", "ggrggrggr", "urwwr", "ururur", "grgrgrgr", "gu"] {
            assert_eq!(after(results), State::Ready, "{results}");
        }
        for results in ["uu", "uuu", "ugu", "gug", "guu", "ggguu", "gggrgruu"] {
            assert_eq!(after(results), State::Unready, "{results}");
        }
        for results in ["ggg", "gwg", "www", "uuuggg", "gggr", "gggrg", "gggu", "gggrgrgrgr"] {
            assert_eq!(after(results), State::Dead, "{results}");
        }
        assert_eq!(after("gggrr"), State::Ready);
        assert_eq!(after("uuurr"), State::Ready);
    }

    #[test]
    fn only_what_is_gone_is_gone() {
        let mut health = HealthState::default();
        for _ in 0..3 {
            health.learn(&ProbeResult::Unreachable("refused".into()), THRESHOLDS);
        }
        assert!(health.is_unreachable() && health.cause() == "refused");
        health.learn(&ProbeResult::Wrong("expired".into()), THRESHOLDS);
        assert!(!health.is_unreachable(), "it is there, after all");
        health.learn(&ProbeResult::Unreachable("refused".into()), THRESHOLDS);
        assert!(health.is_unreachable());
        health.learn(&ProbeResult::Ready, THRESHOLDS);
        assert!(health.state() == State::Dead && !health.is_unreachable(), "dead, but coming back");
    }

    #[test]
    fn one_client_cannot_outvote_the_others() {
        let mut health = HealthState::default();
        let bad = ProbeResult::Wrong("odd".into());
        for _ in 0..10 {
            for _ in 0..2 {
                assert_eq!(health.apply_client_result(&bad, THRESHOLDS), None);
            }
            assert_eq!(health.apply_client_result(&ProbeResult::Ready, THRESHOLDS), None);
        }
        for _ in 0..2 {
            health.apply_client_result(&bad, THRESHOLDS);
        }
        health.learn(&ProbeResult::Ready, THRESHOLDS);
        assert_eq!(health.apply_client_result(&bad, THRESHOLDS), None, "nor a check");
        for _ in 0..2 {
            health.apply_client_result(&bad, THRESHOLDS);
        }
        assert_eq!((health.state(), health.cause()), (State::Dead, "odd"));
        health.apply_client_result(&ProbeResult::Ready, THRESHOLDS);
        assert_eq!(health.state(), State::Dead, "it is for checks, or trials, to say that it is back");
        health.learn(&ProbeResult::Ready, THRESHOLDS);
        assert_eq!(health.state(), State::Dead);
        health.learn(&ProbeResult::Ready, THRESHOLDS);
        assert_eq!(health.state(), State::Ready);
    }
}
