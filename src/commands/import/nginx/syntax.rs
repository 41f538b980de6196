//! Syntax: directives of words, with or without a block of more directives.

use std::iter::Peekable;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::str::Chars;

use crate::commands::import::notes::{Location, Notes};

/// Deeper blocks are left out.
const MAX_DEPTH: usize = 32;

#[derive(Debug)]
pub(super) struct Directive {
    pub(super) first: usize,
    /// The last line of its words.
    pub(super) last: usize,
    pub(super) words: Vec<String>,
    pub(super) block: Option<Block>,
    /// An included file; `None`: the source itself.
    pub(super) file: Option<Rc<str>>,
}

#[derive(Debug)]
pub(super) struct Block {
    pub(super) directives: Vec<Directive>,
    /// The line of the closing brace.
    pub(super) end: usize,
}

impl Directive {
    fn of(lines: RangeInclusive<usize>, words: &mut Vec<String>) -> Self {
        Self { first: *lines.start(), last: *lines.end(), words: std::mem::take(words), block: None, file: None }
    }

    pub(super) fn words(&self) -> Vec<&str> {
        self.words.iter().map(String::as_str).collect()
    }

    pub(super) fn inside(&self) -> &[Directive] {
        self.block.as_ref().map_or(&[], |block| &block.directives)
    }

    pub(super) fn location(&self) -> Location {
        self.at(self.first..=self.last)
    }

    /// Including its block.
    pub(super) fn whole(&self) -> Location {
        self.at(self.range())
    }

    fn at(&self, lines: RangeInclusive<usize>) -> Location {
        self.file.as_ref().map_or_else(|| Location::lines(&lines), |file| Location::in_file(file, *lines.start()))
    }

    /// Sets the file of it and all in its block, and adds to their line numbers.
    pub(super) fn move_to(&mut self, file: Option<&Rc<str>>, by: usize) {
        self.first += by;
        self.last += by;
        self.file = file.cloned();
        if let Some(block) = &mut self.block {
            block.end += by;
            block.directives.iter_mut().for_each(|inner| inner.move_to(file, by));
        }
    }

    fn range(&self) -> RangeInclusive<usize> {
        self.first..=self.block.as_ref().map_or(self.last, |block| block.end)
    }

    /// The lines of its words and of its closing brace.
    pub(super) fn first_and_last_line(&self) -> [Location; 2] {
        let end = *self.range().end();
        [self.location(), self.at(end..=end)]
    }
}

enum Token {
    Word(String),
    Open,
    Close,
    End,
}

/// Missing semicolons and braces get a note and are assumed.
pub(super) fn read(source: &str, notes: &mut Notes) -> Vec<Directive> {
    let mut tokens = Tokens { characters: source.chars().peekable(), line: 1, unclosed_quote: None };
    let mut open: Vec<(Directive, Vec<Directive>)> = Vec::new();
    let mut current: Vec<Directive> = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let (mut first, mut last) = (1, 1);
    let mut too_deep = 0usize;
    while let Some((line, token)) = tokens.next() {
        match token {
            Token::Word(word) => {
                if words.is_empty() {
                    first = line;
                }
                last = tokens.line;
                words.push(word);
            }
            Token::End if words.is_empty() => {}
            Token::End => current.push(Directive::of(first..=line.max(last), &mut words)),
            Token::Open if open.len() >= MAX_DEPTH => {
                notes.note(&Location::line(line), "blocks nested too deeply");
                words.clear();
                too_deep += 1;
            }
            Token::Open => {
                if words.is_empty() {
                    first = line;
                }
                open.push((Directive::of(first..=line.max(last), &mut words), std::mem::take(&mut current)));
            }
            Token::Close => {
                if !words.is_empty() {
                    notes.note(&Location::line(line), "a semicolon is missing before the brace");
                    current.push(Directive::of(first..=line.max(last), &mut words));
                }
                if too_deep > 0 {
                    too_deep -= 1;
                } else if let Some((mut outer, before)) = open.pop() {
                    outer.block = Some(Block { directives: std::mem::replace(&mut current, before), end: line });
                    current.push(outer);
                } else {
                    notes.note(&Location::line(line), "no block is open here");
                }
            }
        }
    }
    if let Some(line) = tokens.unclosed_quote {
        notes.note(&Location::line(line), "a quote is not closed");
    }
    let end = tokens.line;
    if !words.is_empty() {
        notes.note(&Location::line(first), "the file ends within this directive");
        current.push(Directive::of(first..=end, &mut words));
    }
    while let Some((mut outer, before)) = open.pop() {
        notes.note(&outer.location(), "the block is not closed");
        outer.block = Some(Block { directives: std::mem::replace(&mut current, before), end });
        current.push(outer);
    }
    current
}

/// `$name` or `${name}`.
pub(super) fn variable_name(text: &str) -> Option<&str> {
    let name = text.strip_prefix('$')?;
    let name = name.strip_prefix('{').and_then(|name| name.strip_suffix('}')).unwrap_or(name);
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_').then_some(name)
}

struct Tokens<'a> {
    characters: Peekable<Chars<'a>>,
    line: usize,
    /// The line of a quote that is not closed.
    unclosed_quote: Option<usize>,
}

impl Tokens<'_> {
    fn character(&mut self) -> Option<char> {
        let character = self.characters.next()?;
        self.line += usize::from(character == '\n');
        Some(character)
    }

    /// With the number of its first line.
    fn next(&mut self) -> Option<(usize, Token)> {
        loop {
            let line = self.line;
            match self.character()? {
                character if character.is_ascii_whitespace() => {}
                '#' => while self.characters.next_if(|character| *character != '\n').is_some() {},
                ';' => return Some((line, Token::End)),
                '{' => return Some((line, Token::Open)),
                '}' => return Some((line, Token::Close)),
                quote @ ('"' | '\'') => return Some((line, Token::Word(self.quoted(quote, line)))),
                character => return Some((line, Token::Word(self.word(character)))),
            }
        }
    }

    fn quoted(&mut self, quote: char, line: usize) -> String {
        let mut word = String::new();
        loop {
            match self.character() {
                None => {
                    self.unclosed_quote = Some(line);
                    return word;
                }
                Some('\\') if self.characters.peek().is_some_and(|next| *next == quote || *next == '\\') => {
                    word.extend(self.character());
                }
                Some(character) if character == quote => return word,
                Some(character) => word.push(character),
            }
        }
    }

    fn word(&mut self, first: char) -> String {
        let mut word = String::from(first);
        let mut escaped = first == '\\';
        let mut before = first;
        loop {
            let is_variable = before == '$';
            let is_part = |character: &char| {
                escaped
                    || !(character.is_ascii_whitespace() || *character == ';' || (*character == '{' && !is_variable))
            };
            let Some(character) = self.characters.next_if(is_part) else { return word };
            self.line += usize::from(character == '\n');
            escaped = character == '\\' && !escaped;
            before = character;
            word.push(character);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_read_as_by_nginx() {
        let source = "a b # c\n 'd;e' \"f\\\"\n\";\ng {\n  h ${i}j; # }\n  \"~^k{2}$\" l;\n}\nm\\;n;";
        let mut notes = Notes::new(source);
        let all = read(source, &mut notes);
        assert_eq!(all[0].words, ["a", "b", "d;e", "f\"\n"]);
        assert_eq!((all[0].first, all[0].last), (1, 3));
        assert_eq!((all[1].range(), all[1].inside()[0].words()), (4..=7, vec!["h", "${i}j"]));
        assert_eq!(all[2].words, ["m\\;n"]);
    }

    #[test]
    fn missing_ends_are_assumed() {
        for (source, expected) in [("a { b", 1), ("a 'b", 1), ("}a;", 1), ("{", 1), (";", 0), ("a}", 1)] {
            assert_eq!(read(source, &mut Notes::new(source)).len(), expected, "{source}");
        }
        let deep = "a{".repeat(1_000_000);
        read(&deep, &mut Notes::new(&deep));
    }
}
