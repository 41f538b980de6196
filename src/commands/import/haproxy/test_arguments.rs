//! Flags and values of a criterion, after its sample.

pub(super) struct TestArguments<'a> {
    pub(super) method: &'a str,
    /// `-i`
    pub(super) ignores_case: bool,
    pub(super) values: Vec<&'a str>,
    pub(super) files: Vec<&'a str>,
}

impl<'a> TestArguments<'a> {
    pub(super) fn read(method: &'a str, words: &[&'a str]) -> Result<Self, String> {
        let mut arguments = Self { method, ignores_case: false, values: Vec::new(), files: Vec::new() };
        let mut rest = words;
        while let [word, after @ ..] = rest {
            rest = after;
            match (*word, after) {
                ("-i", _) => arguments.ignores_case = true,
                ("-n" | "-M", _) => {}
                ("-m", [method, after @ ..]) => (arguments.method, rest) = (method, after),
                ("-u", [_, after @ ..]) => rest = after,
                ("-f", [file, after @ ..]) => {
                    arguments.files.push(file);
                    rest = after;
                }
                ("--", values) => {
                    arguments.values.extend(values);
                    break;
                }
                (flag, _) if flag.len() == 2 && flag.starts_with('-') && arguments.values.is_empty() => {
                    return Err(format!("the flag `{flag}` is not understood"));
                }
                (value, _) => arguments.values.push(value),
            }
        }
        Ok(arguments)
    }
}
