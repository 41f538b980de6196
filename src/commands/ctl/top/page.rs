//! What the page shows, and what keys do to it.

use std::time::{Instant, SystemTime};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::fetch::{Answer, Wanted};
use super::list::List;
use super::rows::{self, Kind};
use super::sample::{Connections, Sample};
use super::timeline::Timeline;

pub(super) struct Page {
    pub(super) timeline: Timeline,
    pub(super) connections: Option<Connections>,
    /// The connections listed are those of this route.
    connections_of: Option<String>,
    overview: View,
    /// The route that is looked into.
    route: Option<(String, View)>,
    pub(super) is_paused: bool,
    pub(super) is_help: bool,
    /// Whether what is typed is the filter of the list.
    pub(super) is_filtering: bool,
    /// Since when the instance does not answer, and why.
    pub(super) unreachable: Option<(Instant, String)>,
    /// When another process began to answer, and which one had before.
    pub(super) replaced: Option<(Instant, u64)>,
}

/// Lists, one below the other.
#[derive(Debug)]
pub(super) struct View {
    pub(super) lists: Vec<(Kind, List)>,
    /// The one that keys are for.
    pub(super) focus: usize,
}

/// What is to be done after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Show,
    Suspend,
    Quit,
}

impl View {
    fn new<const N: usize>(kinds: [Kind; N]) -> Self {
        Self { lists: kinds.map(|kind| (kind, kind.list())).into(), focus: 0 }
    }

    pub(super) fn list(&mut self) -> &mut List {
        &mut self.lists[self.focus].1
    }

    fn focus_next(&mut self, step: usize) {
        self.focus = (self.focus + step) % self.lists.len();
    }
}

impl Page {
    pub(super) fn new(first: Sample) -> Self {
        let mut page = Self {
            timeline: Timeline::new(first),
            connections: None,
            connections_of: None,
            overview: View::new([Kind::Routes, Kind::Endpoints, Kind::Refusals]),
            route: None,
            is_paused: false,
            is_help: false,
            is_filtering: false,
            unreachable: None,
            replaced: None,
        };
        page.fill();
        page
    }

    pub(super) fn view(&mut self) -> &mut View {
        self.route.as_mut().map_or(&mut self.overview, |(_, view)| view)
    }

    /// The name of the route that is looked into.
    pub(super) fn route(&self) -> Option<&str> {
        self.route.as_ref().map(|(name, _)| name.as_str())
    }

    pub(super) fn wanted(&self) -> Wanted {
        let sort = |view: &View| {
            view.lists.iter().find(|(kind, _)| *kind == Kind::Connections).map(|(_, list)| rows::connection_sort(list))
        };
        let connections = self.route.as_ref().and_then(|(name, view)| Some((name.clone(), sort(view)?)));
        Wanted { connections, is_paused: self.is_paused }
    }

    pub(super) fn answer(&mut self, answer: Answer) {
        match answer {
            // It was on its way.
            _ if self.is_paused => return,
            Answer::Sample(Ok(sample)) => {
                self.unreachable = None;
                if let Some(before) = self.timeline.add(sample) {
                    self.replaced = Some((Instant::now(), before));
                }
            }
            Answer::Sample(Err(reason)) => {
                let since = self.unreachable.as_ref().map_or_else(Instant::now, |(since, _)| *since);
                self.unreachable = Some((since, format!("{reason:#}")));
            }
            Answer::Connections(wanted, connections) => {
                self.connections = Some(connections);
                self.connections_of = wanted.connections.map(|(route, _)| route);
            }
        }
        self.fill();
    }

    /// Makes the rows of the lists that are shown.
    fn fill(&mut self) {
        let Self { timeline, connections, connections_of, overview, route, .. } = self;
        let (of, view) = match route {
            Some((name, view)) => (Some(name.as_str()), view),
            None => (None, overview),
        };
        let connections = connections.as_ref().filter(|_| connections_of.as_deref() == of);
        for (kind, list) in &mut view.lists {
            list.set(match kind {
                Kind::Routes => rows::routes(timeline),
                Kind::Endpoints => rows::endpoints(timeline, of),
                Kind::Refusals => rows::refusals(&timeline.now.refusals, of, SystemTime::now()),
                Kind::Connections => rows::connections(connections.map_or(&[], |connections| &connections.listed)),
            });
            match kind {
                Kind::Endpoints => list.note = rows::endpoint_states(timeline, of),
                Kind::Connections => list.total = connections.map_or(0, |connections| connections.matched),
                Kind::Routes | Kind::Refusals => {}
            }
        }
    }

    pub(super) fn key(&mut self, key: KeyEvent) -> Next {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Next::Quit,
                KeyCode::Char('z') => Next::Suspend,
                _ => Next::Show,
            };
        }
        if self.is_help {
            self.is_help = false;
            return Next::Show;
        }
        if !(self.is_filtering && self.filter_key(key.code)) {
            match key.code {
                KeyCode::Char('q') => return Next::Quit,
                KeyCode::Char('?') | KeyCode::F(1) => self.is_help = true,
                KeyCode::Char('p') => self.is_paused = !self.is_paused,
                KeyCode::Char('/') => self.is_filtering = true,
                KeyCode::Esc => self.back(),
                KeyCode::Enter => self.look_into(),
                KeyCode::Tab => self.view().focus_next(1),
                KeyCode::BackTab => {
                    let others = self.view().lists.len() - 1;
                    self.view().focus_next(others);
                }
                code => list_key(self.view().list(), code),
            }
        }
        self.fill();
        Next::Show
    }

    /// Whether the key is for the filter that is typed.
    fn filter_key(&mut self, code: KeyCode) -> bool {
        let filter = &mut self.view().list().filter;
        match code {
            KeyCode::Char(character) => filter.push(character),
            KeyCode::Backspace => drop(filter.pop()),
            KeyCode::Enter => self.is_filtering = false,
            KeyCode::Esc => {
                filter.clear();
                self.is_filtering = false;
            }
            KeyCode::Tab | KeyCode::BackTab => {
                self.is_filtering = false;
                return false;
            }
            _ => return false,
        }
        true
    }

    fn back(&mut self) {
        let filter = &mut self.view().list().filter;
        if filter.is_empty() {
            self.route = None;
        } else {
            filter.clear();
        }
    }

    fn look_into(&mut self) {
        let selected = self.view().list().selected().and_then(|row| row.route.clone());
        if let (None, Some(route)) = (&self.route, selected) {
            let mut view = View::new([Kind::Endpoints, Kind::Connections, Kind::Refusals]);
            view.lists = view.lists.into_iter().map(|(kind, list)| (kind, list.without("ROUTE"))).collect();
            self.route = Some((route, view));
        }
    }
}

fn list_key(list: &mut List, code: KeyCode) {
    match code {
        KeyCode::Up | KeyCode::Char('k') => list.move_by(-1),
        KeyCode::Down | KeyCode::Char('j') => list.move_by(1),
        KeyCode::PageUp => list.move_by_pages(-1),
        KeyCode::PageDown => list.move_by_pages(1),
        KeyCode::Home | KeyCode::Char('g') => list.move_by(isize::MIN),
        KeyCode::End | KeyCode::Char('G') => list.move_by(isize::MAX),
        KeyCode::Char('s') => list.sort_by_next(1),
        KeyCode::Char('S') => list.sort_by_next(-1),
        KeyCode::Char('r') => list.is_reversed = !list.is_reversed,
        _ => {}
    }
}
