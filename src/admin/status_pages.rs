//! The text of `/api/status`, with all routes or some.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use hyper::body::Bytes;

use super::exposition::PIECE;
use super::status::Selection;
use super::{AdminHandles, View, status};
use crate::text::escape::visible;

/// The status at one moment, of which clients share the parts.
#[derive(Debug)]
pub(super) struct Snapshot {
    view: Arc<View>,
    /// The JSON object without its routes and its closing brace.
    head: String,
    chunks: Vec<Bytes>,
    /// The chunk and range of each route, without the separator that follows.
    routes: Vec<(usize, Range<usize>)>,
}

const SEPARATOR: &str = ",\n";

impl Snapshot {
    /// A snapshot of all routes, which takes long if there are many.
    pub(super) fn of(handles: &AdminHandles) -> Self {
        let view = handles.view.load_full();
        let all = 0..view.routes.len();
        Self::of_some(handles, view, all)
    }

    /// With the selected routes only, which is quick if they are few.
    pub(super) fn of_selected(handles: &AdminHandles, selection: &Selection) -> Result<(Self, Page), String> {
        let view = handles.view.load_full();
        let selected = selected(&view, selection)?;
        let snapshot = Self::of_some(handles, view, selected);
        let page = snapshot.page_of(0..snapshot.routes.len(), selection.offset);
        Ok((snapshot, page))
    }

    fn of_some(handles: &AdminHandles, view: Arc<View>, some: Range<usize>) -> Self {
        let mut head = format!("{:#}", status::without_routes(handles, &view));
        head.truncate(head.strip_suffix("\n}").map_or(head.len(), str::len));
        let (mut chunks, mut chunk, mut routes) = (Vec::new(), String::new(), Vec::new());
        for route in &view.routes[some] {
            if chunk.len() > PIECE {
                chunks.push(Bytes::copy_from_slice(chunk.as_bytes()));
                chunk.clear();
            }
            let begin = chunk.len();
            // Writing to a string cannot fail.
            let _ = write!(chunk, "    {}", format!("{:#}", status::route(route)).replace('\n', "\n    "));
            routes.push((chunks.len(), begin..chunk.len()));
            chunk.push_str(SEPARATOR);
        }
        chunks.push(chunk.into());
        Self { view, head, chunks, routes }
    }

    /// The error says that there is no such route.
    pub(super) fn page(&self, selection: &Selection) -> Result<Page, String> {
        Ok(self.page_of(selected(&self.view, selection)?, selection.offset))
    }

    fn page_of(&self, routes: Range<usize>, offset: usize) -> Page {
        let mut slices: Vec<(usize, Range<usize>)> = Vec::new();
        for (chunk, text) in &self.routes[routes] {
            match slices.last_mut() {
                Some((before, slice)) if before == chunk => slice.end = text.end,
                Some((_, slice)) => {
                    slice.end += SEPARATOR.len();
                    slices.push((*chunk, text.clone()));
                }
                None => slices.push((*chunk, text.clone())),
            }
        }
        let is_empty = slices.is_empty();
        let (open, close) = if is_empty { ("[", "]\n}\n") } else { ("[\n", "\n  ]\n}\n") };
        let head = format!("{},\n  \"offset\": {offset},\n  \"routes\": {open}", self.head);
        Page { head: head.into(), slices, close }
    }
}

fn selected(view: &View, selection: &Selection) -> Result<Range<usize>, String> {
    let Selection { route, offset, limit } = selection;
    let mut routes = 0..view.routes.len();
    if let Some(name) = route {
        let found = view.routes.iter().position(|route| route.counters.name() == name);
        let found = found.ok_or_else(|| format!("there is no route `{}`\n", visible(name)))?;
        routes = found..found + 1;
    }
    let first = routes.start.saturating_add(*offset).min(routes.end);
    Ok(first..first.saturating_add(*limit).min(routes.end))
}

/// The parts of a snapshot that a response consists of.
#[derive(Debug)]
pub(super) struct Page {
    head: Bytes,
    slices: Vec<(usize, Range<usize>)>,
    close: &'static str,
}

impl Page {
    pub(super) fn length(&self) -> usize {
        self.head.len() + self.slices.iter().map(|(_, slice)| slice.len()).sum::<usize>() + self.close.len()
    }

    pub(super) fn piece(&self, snapshot: &Snapshot, index: usize) -> Option<Bytes> {
        match index.checked_sub(1) {
            None => Some(self.head.clone()),
            Some(slice) if slice < self.slices.len() => {
                let (chunk, range) = &self.slices[slice];
                Some(snapshot.chunks[*chunk].slice(range.clone()))
            }
            Some(slice) if slice == self.slices.len() => Some(Bytes::from_static(self.close.as_bytes())),
            Some(_) => None,
        }
    }
}
