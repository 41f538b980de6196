//! The state machine of an endpoint's health. Pure: no clock, no I/O.

use strum::{FromRepr, IntoStaticStr, VariantArray};

/// Whether new connections go to an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromRepr, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub(crate) enum EndpointState {
    /// It gets new connections.
    #[default]
    Ready,
    /// It responds, but is not ready, as API servers that are shutting down: it gets no new connections while others are
    /// ready, and keeps those it has.
    Unready,
    /// It does not respond correctly: it gets no new connections while others do.
    Dead,
}

impl EndpointState {
    /// The value of `state` in logs and metrics.
    pub(crate) fn label(self) -> &'static str {
        self.into()
    }
}

/// The result of a check or of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProbeResult {
    Ready,
    /// It is alive, and reports that it is not ready.
    Unready(String),
    /// Connecting was refused or timed out.
    Unreachable(String),
    /// It is reachable, but fails otherwise: its certificate does not verify, or its response is invalid.
    Wrong(String),
}

/// How many consecutive results change the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Thresholds {
    /// To become ready, or at least alive, again.
    pub(crate) rise: u32,
    /// To become unready or dead.
    pub(crate) fall: u32,
    /// To become unready if the endpoint itself reports it, which is not a lost packet.
    pub(crate) unready: u32,
}

/// An endpoint's state, and the counts that change it. It starts as ready.
#[derive(Clone, Debug, Default)]
pub(crate) struct HealthState {
    state: EndpointState,
    cause: Box<str>,
    is_unreachable: bool,
    /// Consecutive results.
    ready: u32,
    alive: u32,
    says_unready: u32,
    not_ready: u32,
    failed: u32,
    /// Consecutive failed connections.
    failed_clients: u32,
}

impl HealthState {
    pub(crate) fn state(&self) -> EndpointState {
        self.state
    }

    /// The last result that was not ready; empty while it is.
    pub(crate) fn cause(&self) -> &str {
        &self.cause
    }

    /// Whether it is dead because it cannot be connected to.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.state == EndpointState::Dead && self.is_unreachable
    }

    /// Whether it has reported that it is not ready, but not often enough yet.
    pub(crate) fn is_about_to_be_unready(&self) -> bool {
        self.state == EndpointState::Ready && self.says_unready > 0
    }

    /// Consecutive failures, of checks or connections.
    pub(crate) fn failures(&self) -> u32 {
        self.not_ready.max(self.failed_clients)
    }

    /// Applies the result of a connection. Returns the previous state if it has changed. Connections depend on clients,
    /// which are not trusted: any success resets the count of failures.
    pub(crate) fn apply_client_result(
        &mut self,
        result: &ProbeResult,
        thresholds: Thresholds,
    ) -> Option<EndpointState> {
        let before = self.state;
        self.failed_clients = match result {
            ProbeResult::Ready | ProbeResult::Unready(_) => 0,
            ProbeResult::Unreachable(_) | ProbeResult::Wrong(_) => self.failed_clients.saturating_add(1),
        };
        if self.failed_clients >= thresholds.fall {
            self.state = EndpointState::Dead;
            // Earlier results of checks no longer count.
            self.ready = 0;
            self.alive = 0;
            if self.failed == 0 {
                self.set_cause(result);
            }
        }
        (self.state != before).then_some(before)
    }

    fn set_cause(&mut self, result: &ProbeResult) {
        if let ProbeResult::Unready(cause) | ProbeResult::Unreachable(cause) | ProbeResult::Wrong(cause) = result {
            self.cause = cause.as_str().into();
        }
        self.is_unreachable = matches!(result, ProbeResult::Unreachable(_));
    }

    /// Applies the result of a check. Returns the previous state if it has changed.
    pub(crate) fn apply_check_result(&mut self, result: &ProbeResult, thresholds: Thresholds) -> Option<EndpointState> {
        let before = self.state;
        let (is_ready, is_alive) = match result {
            ProbeResult::Ready => (true, true),
            ProbeResult::Unready(_) => (false, true),
            ProbeResult::Unreachable(_) | ProbeResult::Wrong(_) => (false, false),
        };
        let count = |streak: u32, continues: bool| if continues { streak.saturating_add(1) } else { 0 };
        self.ready = count(self.ready, is_ready);
        self.alive = count(self.alive, is_alive);
        self.says_unready = count(self.says_unready, is_alive && !is_ready);
        self.not_ready = count(self.not_ready, !is_ready);
        self.failed = count(self.failed, !is_alive);
        self.set_cause(result);
        if is_ready {
            self.failed_clients = 0;
        }
        self.state = match before {
            _ if self.ready >= thresholds.rise => EndpointState::Ready,
            _ if self.failed >= thresholds.fall => EndpointState::Dead,
            // If answers and failures alternate, neither comes often enough in a row.
            EndpointState::Ready if self.not_ready >= thresholds.fall.max(thresholds.unready) => EndpointState::Unready,
            EndpointState::Ready if self.says_unready >= thresholds.unready => EndpointState::Unready,
            EndpointState::Dead if self.alive >= thresholds.rise => EndpointState::Unready,
            same => same,
        };
        if self.state == EndpointState::Ready && is_ready {
            self.cause = "".into();
        }
        (self.state != before).then_some(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLDS: Thresholds = Thresholds { rise: 2, fall: 3, unready: 2 };

    fn after(results: &str) -> HealthState {
        after_with(results, THRESHOLDS)
    }

    fn after_with(results: &str, thresholds: Thresholds) -> HealthState {
        let mut health = HealthState::default();
        for result in results.chars() {
            let result = match result {
                'r' => ProbeResult::Ready,
                'u' => ProbeResult::Unready("u".into()),
                'g' => ProbeResult::Unreachable("g".into()),
                'w' => ProbeResult::Wrong("w".into()),
                other => panic!("{other}"),
            };
            health.apply_check_result(&result, thresholds);
        }
        health
    }

    #[test]
    fn b12_one_answer_that_says_unready_asks_for_another_soon() {
        for (results, is_about_to) in
            [("", false), ("u", true), ("gu", true), ("ur", false), ("ug", false), ("uu", false)]
        {
            assert_eq!(after(results).is_about_to_be_unready(), is_about_to, "{results}");
        }
    }

    #[test]
    fn the_cause_is_the_last_failure_until_the_endpoint_is_ready_and_answers_so() {
        for (results, cause) in [("", ""), ("gw", "w"), ("ggr", ""), ("gggr", "g"), ("gggrr", "")] {
            assert_eq!(after(results).cause(), cause, "{results}");
        }
    }

    #[test]
    fn failures_in_a_row_are_of_checks_or_of_clients() {
        for (results, failures) in [("", 0), ("gg", 2), ("ggr", 0), ("gwug", 4)] {
            assert_eq!(after(results).failures(), failures, "{results}");
        }
        let mut health = after("g");
        for _ in 0..2 {
            health.apply_client_result(&ProbeResult::Wrong("odd".into()), THRESHOLDS);
        }
        assert_eq!(health.failures(), 2);
    }

    #[test]
    fn b11_only_consecutive_results_change_the_state() {
        for results in ["", "ggrggrggr", "urwwr", "ururur", "grgrgrgr", "gu"] {
            assert_eq!(after(results).state(), EndpointState::Ready, "{results}");
        }
        for results in ["uu", "uuu", "ugu", "gug", "guu", "ggguu", "gggrgruu"] {
            assert_eq!(after(results).state(), EndpointState::Unready, "{results}");
        }
        for results in ["ggg", "gwg", "www", "uuuggg", "gggr", "gggrg", "gggu", "gggrgrgrgr"] {
            assert_eq!(after(results).state(), EndpointState::Dead, "{results}");
        }
        assert_eq!(after("gggrr").state(), EndpointState::Ready);
        assert_eq!(after("uuurr").state(), EndpointState::Ready);
    }

    #[test]
    fn b12_unready_counts_answers_that_say_so_also_beyond_fall() {
        let patient = Thresholds { unready: 5, ..THRESHOLDS };
        for (results, state) in [
            ("uuuu", EndpointState::Ready),
            ("uuuuu", EndpointState::Unready),
            ("ugug", EndpointState::Ready),
            ("ugugu", EndpointState::Unready),
            ("ggg", EndpointState::Dead),
        ] {
            assert_eq!(after_with(results, patient).state(), state, "{results}");
        }
    }

    #[test]
    fn only_an_endpoint_that_cannot_be_connected_to_is_unreachable() {
        let mut health = HealthState::default();
        for _ in 0..3 {
            health.apply_check_result(&ProbeResult::Unreachable("refused".into()), THRESHOLDS);
        }
        assert!(health.is_unreachable() && health.cause() == "refused");
        health.apply_check_result(&ProbeResult::Wrong("expired".into()), THRESHOLDS);
        assert!(!health.is_unreachable(), "it is reachable");
        health.apply_check_result(&ProbeResult::Unreachable("refused".into()), THRESHOLDS);
        assert!(health.is_unreachable());
        health.apply_check_result(&ProbeResult::Ready, THRESHOLDS);
        assert!(health.state() == EndpointState::Dead && !health.is_unreachable(), "dead, but recovering");
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
        health.apply_check_result(&ProbeResult::Ready, THRESHOLDS);
        assert_eq!(health.apply_client_result(&bad, THRESHOLDS), None, "checks reset the count, too");
        for _ in 0..2 {
            health.apply_client_result(&bad, THRESHOLDS);
        }
        assert_eq!((health.state(), health.cause()), (EndpointState::Dead, "odd"));
        health.apply_client_result(&ProbeResult::Ready, THRESHOLDS);
        assert_eq!(health.state(), EndpointState::Dead, "only checks or trials make it ready again");
        health.apply_check_result(&ProbeResult::Ready, THRESHOLDS);
        assert_eq!(health.state(), EndpointState::Dead);
        health.apply_check_result(&ProbeResult::Ready, THRESHOLDS);
        assert_eq!(health.state(), EndpointState::Ready);
    }
}
