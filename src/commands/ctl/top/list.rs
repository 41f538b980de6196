//! A list that is sorted, filtered and scrolled, whatever it is of.

use std::cmp::Ordering;
use std::ops::Range;

use ratatui::text::Span;

/// What a list consists of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) title: &'static str,
    pub(super) is_number: bool,
    /// Whether it is sorted by descending values first.
    pub(super) descends: bool,
    /// Texts are not cut further; numbers are never cut, and their column is not narrower.
    pub(super) min_width: usize,
    /// Where there is no room for all columns, that with the lowest is left out first.
    pub(super) rank: u8,
}

#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Different from that of all other rows, and the same in the next sample.
    pub(super) id: String,
    /// The route that it belongs to.
    pub(super) route: Option<String>,
    pub(super) tone: Tone,
    pub(super) cells: Vec<Cell>,
}

#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub(super) text: String,
    /// What it is sorted by, unless that is its text.
    number: Option<f64>,
}

/// A color, where there are colors; the text says the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    #[default]
    Plain,
    Doubtful,
    Bad,
    Faint,
}

impl Cell {
    pub(super) fn text(text: &str) -> Self {
        Self { text: crate::commands::printable(text), number: None }
    }

    /// Shown like this, sorted as a number.
    pub(super) fn number(text: String, number: f64) -> Self {
        Self { text, number: Some(number) }
    }

    fn compare(&self, other: &Self) -> Ordering {
        match (self.number, other.number) {
            (Some(number), Some(other)) => number.total_cmp(&other),
            _ => self.text.cmp(&other.text),
        }
    }
}

/// The rows, and what the operator wants to see of them.
#[derive(Clone, Debug)]
pub(super) struct List {
    pub(super) columns: &'static [Column],
    /// The column that would say the same in each row.
    hidden: Option<usize>,
    /// Rows that match the filter, in order.
    pub(super) rows: Vec<Row>,
    /// The width of the longest text of each column, with its title.
    longest: Vec<usize>,
    /// How many rows there are in all.
    pub(super) total: usize,
    /// What is to be known of all of them.
    pub(super) note: String,
    pub(super) sorted_by: usize,
    pub(super) is_reversed: bool,
    pub(super) filter: String,
    /// The row that was selected by its ID; `None`: the first one, whichever it is.
    selected: Option<String>,
    /// Where it is, or was.
    position: usize,
    /// Rows above the first that is shown.
    offset: usize,
    /// How many were shown last.
    room: usize,
}

impl List {
    pub(super) fn new(columns: &'static [Column], sorted_by: usize) -> Self {
        Self {
            columns,
            hidden: None,
            rows: Vec::new(),
            longest: vec![0; columns.len()],
            total: 0,
            note: String::new(),
            sorted_by,
            is_reversed: false,
            filter: String::new(),
            selected: None,
            position: 0,
            offset: 0,
            room: 0,
        }
    }

    pub(super) fn without(self, title: &str) -> Self {
        Self { hidden: self.columns.iter().position(|column| column.title == title), ..self }
    }

    /// Shows these rows from now on.
    pub(super) fn set(&mut self, rows: Vec<Row>) {
        self.total = rows.len();
        self.rows = rows;
        let filter = self.filter.to_lowercase();
        self.rows.retain(|row| row.cells.iter().any(|cell| cell.text.to_lowercase().contains(&filter)));
        let (column, descends) = (self.sorted_by, self.is_descending());
        self.rows.sort_by(|one, other| {
            let order = one.cells[column].compare(&other.cells[column]);
            if descends { order.reverse() } else { order }
        });
        self.longest = self.columns.iter().map(|column| width(column.title)).collect();
        for row in &self.rows {
            for (longest, cell) in self.longest.iter_mut().zip(&row.cells) {
                *longest = (*longest).max(width(&cell.text));
            }
        }
        if let Some(hidden) = self.hidden {
            self.longest[hidden] = 0;
        }
        self.position = match &self.selected {
            None => 0,
            Some(id) => self.rows.iter().position(|row| row.id == *id).unwrap_or(self.position),
        };
        self.position = self.position.min(self.rows.len().saturating_sub(1));
    }

    pub(super) fn is_descending(&self) -> bool {
        self.columns[self.sorted_by].descends != self.is_reversed
    }

    /// By the next column, or one before. The rows are sorted when they are set again.
    pub(super) fn sort_by_next(&mut self, step: isize) {
        let columns = self.columns.len();
        let next = |column: usize| column.saturating_add_signed(step + columns.cast_signed()) % columns;
        self.sorted_by = next(self.sorted_by);
        if self.hidden == Some(self.sorted_by) {
            self.sorted_by = next(self.sorted_by);
        }
        self.is_reversed = false;
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn selected(&self) -> Option<&Row> {
        self.rows.get(self.position)
    }

    pub(super) fn move_by(&mut self, rows: isize) {
        self.position = self.position.saturating_add_signed(rows).min(self.rows.len().saturating_sub(1));
        self.selected = if self.position == 0 { None } else { self.selected().map(|row| row.id.clone()) };
    }

    /// By as many rows as were shown last.
    pub(super) fn move_by_pages(&mut self, pages: isize) {
        self.move_by(pages.saturating_mul(self.room.max(1).cast_signed()));
    }

    /// How wide the columns are in all; 0: it is not shown.
    pub(super) fn widths(&self, room: usize) -> Vec<usize> {
        widths(self.columns, &self.longest, room)
    }

    /// The rows that are shown where there is room for so many.
    pub(super) fn shown(&mut self, room: usize) -> Range<usize> {
        self.room = room;
        self.offset = self.offset.min(self.rows.len().saturating_sub(room)).min(self.position);
        if self.position >= self.offset + room {
            self.offset = self.position + 1 - room.max(1);
        }
        self.offset..(self.offset + room).min(self.rows.len())
    }
}

/// Columns of a terminal.
pub(super) fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// With one space between columns. The widest texts are cut first; where that does not help, columns are left out.
fn widths(columns: &[Column], longest: &[usize], room: usize) -> Vec<usize> {
    let mut shown: Vec<usize> = (0..columns.len()).filter(|index| longest[*index] > 0).collect();
    let wanted = |index: usize| longest[index].max(if columns[index].is_number { columns[index].min_width } else { 0 });
    let shortest = |index: usize| {
        if columns[index].is_number { wanted(index) } else { columns[index].min_width.min(longest[index]) }
    };
    let gaps = |shown: &[usize]| shown.len().saturating_sub(1);
    while shown.len() > 1 && shown.iter().map(|index| shortest(*index)).sum::<usize>() + gaps(&shown) > room {
        let last = (0..shown.len()).min_by_key(|at| columns[shown[*at]].rank).unwrap_or(0);
        shown.remove(last);
    }
    let mut widths = vec![0; columns.len()];
    for index in &shown {
        widths[*index] = wanted(*index);
    }
    let mut taken = widths.iter().sum::<usize>() + gaps(&shown);
    while taken > room {
        let can_be_cut = |index: &&usize| widths[**index] > shortest(**index) || shown.len() == 1;
        let Some(widest) = shown.iter().filter(can_be_cut).max_by_key(|index| widths[**index]) else { break };
        widths[*widest] -= 1;
        taken -= 1;
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] = [
        Column { title: "NAME", is_number: false, descends: false, min_width: 6, rank: 9 },
        Column { title: "N", is_number: true, descends: true, min_width: 3, rank: 8 },
        Column { title: "CAUSE", is_number: false, descends: false, min_width: 5, rank: 1 },
    ];

    fn list(rows: &[(&str, f64, &str)]) -> Vec<Row> {
        let row = |(name, number, cause): &(&str, f64, &str)| Row {
            id: (*name).into(),
            route: None,
            tone: Tone::Plain,
            cells: vec![Cell::text(name), Cell::number(number.to_string(), *number), Cell::text(cause)],
        };
        rows.iter().map(row).collect()
    }

    fn names(list: &List) -> Vec<&str> {
        list.rows.iter().map(|row| row.id.as_str()).collect()
    }

    #[test]
    fn rows_are_sorted_and_filtered() {
        let rows = list(&[("b", 10.0, "Timeout"), ("a", 9.0, ""), ("c", 100.0, "timeout"), ("d", 9.0, "")]);
        let mut list = List::new(&COLUMNS, 1);
        list.set(rows.clone());
        assert_eq!(names(&list), ["c", "b", "a", "d"], "as numbers; equal ones in the order of the file");
        list.is_reversed = true;
        list.set(rows.clone());
        assert_eq!(names(&list), ["a", "d", "b", "c"]);
        list.sort_by_next(-1);
        list.set(rows.clone());
        assert_eq!(names(&list), ["a", "b", "c", "d"], "names ascend first");
        list.sort_by_next(-1);
        assert_eq!(COLUMNS[list.sorted_by].title, "CAUSE");
        list.filter = "TIME".into();
        list.set(rows.clone());
        assert_eq!((names(&list), list.total), (vec!["b", "c"], 4));
        list.filter = "nowhere".into();
        list.set(rows);
        assert!(list.selected().is_none() && list.shown(3).is_empty());
        list.move_by(1);
        assert_eq!(list.position(), 0);
    }

    #[test]
    fn the_selection_follows_its_row() {
        let mut list = List::new(&COLUMNS, 1);
        list.set(self::list(&[("a", 3.0, ""), ("b", 2.0, ""), ("c", 1.0, "")]));
        list.move_by(1);
        assert_eq!(list.selected().unwrap().id, "b");
        list.set(self::list(&[("a", 3.0, ""), ("b", 0.0, ""), ("c", 1.0, "")]));
        assert_eq!((list.selected().unwrap().id.as_str(), list.position()), ("b", 2));
        list.set(self::list(&[("a", 3.0, ""), ("c", 1.0, "")]));
        assert_eq!(list.selected().unwrap().id, "c", "where it was");
        list.move_by(-9);
        list.set(self::list(&[("a", 3.0, ""), ("c", 9.0, "")]));
        assert_eq!(list.selected().unwrap().id, "c", "the first one, whichever it is");
    }

    #[test]
    fn the_selection_is_always_shown() {
        let rows: Vec<String> = (10..30).map(|number| number.to_string()).collect();
        let rows: Vec<_> = rows.iter().map(|name| (name.as_str(), 1.0, "")).collect();
        let mut list = List::new(&COLUMNS, 1);
        list.set(self::list(&rows));
        assert_eq!(list.shown(5), 0..5);
        list.move_by(5);
        assert_eq!(list.shown(5), 1..6);
        list.move_by(isize::MAX);
        assert_eq!((list.position(), list.shown(5)), (19, 15..20));
        list.move_by(-3);
        assert_eq!(list.shown(5), 15..20);
        assert_eq!(list.shown(30), 0..20, "no room is left unused");
        assert_eq!(list.shown(0).len(), 0);
        list.move_by(isize::MIN);
        assert_eq!(list.shown(5), 0..5);
    }

    #[test]
    fn texts_are_cut_before_columns_are_left_out() {
        let widths = |longest: [usize; 3], room| widths(&COLUMNS, &longest, room);
        assert_eq!(widths([10, 2, 20], 40), [10, 3, 20]);
        assert_eq!(widths([10, 2, 20], 25), [10, 3, 10], "the longest text first");
        assert_eq!(widths([10, 2, 20], 20), [8, 3, 7]);
        assert_eq!(widths([10, 2, 20], 16), [6, 3, 5]);
        assert_eq!(widths([10, 2, 20], 15), [10, 3, 0]);
        assert_eq!(widths([10, 2, 20], 9), [9, 0, 0]);
        assert_eq!(widths([10, 2, 20], 3), [3, 0, 0]);
        assert_eq!(widths([10, 2, 20], 0), [0, 0, 0]);
        assert_eq!(widths([4, 2, 1], 40), [4, 3, 1], "short texts need no more than they have");
    }
}
