//! A configuration of several files: what is read, and what is refused.

use std::fs;
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

use crate::support::{snigate, tls};

const LISTEN: &str = "listen: 127.0.0.1:0\n";
const INCLUDE: &str = "include: routes.d/*.yaml\n";

/// A directory with these files; the main one is `c.yaml`.
struct Files(TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let new = Self(TempDir::new().unwrap());
        for (name, content) in files {
            new.write(name, content);
        }
        new
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), content).unwrap();
    }

    /// Status and output, without the directory.
    fn ran(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = snigate().args(arguments).arg(self.path("c.yaml")).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), text.replace(&format!("{}/", self.0.path().display()), ""))
    }

    #[track_caller]
    fn accepted(&self) -> String {
        let (status, text) = self.ran(&["check"]);
        assert_eq!(status, Some(0), "{text}");
        text
    }

    /// The same from `check` and `run`.
    #[track_caller]
    fn refused(&self, expected: &str) {
        for arguments in [&["check"][..], &["run", "-c"]] {
            let (status, text) = self.ran(arguments);
            assert_eq!((status, &*text), (Some(78), &*format!("snigate: {expected}\n")), "{arguments:?}");
        }
    }
}

fn route(name: &str) -> String {
    format!("routes:\n  - {{sni: {name}, upstream: \"192.0.2.1:1\"}}\n")
}

#[test]
fn g16_the_routes_of_included_files_follow_those_of_the_main_file_in_order_of_name() {
    let files = Files::new(&[
        ("c.yaml", &format!("{LISTEN}{INCLUDE}{}", route("main.example"))),
        ("routes.d/20.yaml", &route("twenty.example")),
        ("routes.d/10.yaml", &route("ten.example")),
        ("routes.d/10.yaml~", "of an editor"),
        ("routes.d/.10.yaml", "hidden"),
        ("routes.d/README", "other"),
    ]);
    let names = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with("  ") && line.ends_with(".example"));
        lines.map(|line| line.trim().to_owned()).filter(|line| !line.contains(' ')).collect()
    };
    let told = files.accepted();
    assert_eq!(names(&told), ["main.example", "ten.example", "twenty.example"], "{told}");
    assert!(told.starts_with("c.yaml is valid.\nfiles      3: this one, 2 included, 0 with networks\n"), "{told}");

    // Without routes of its own, and in the order of several patterns; a file that two of them find counts once.
    files.write("c.yaml", &format!("{LISTEN}include: [routes.d/20.yaml, \"*/?0.yaml\"]\n"));
    let told = files.accepted();
    assert_eq!(names(&told), ["twenty.example", "ten.example"], "{told}");

    // Every command that reads a configuration reads them.
    let (status, told) = files.ran(&["explain", "--sni", "ten.example", "-c"]);
    assert!(status == Some(0) && told.contains("route      ten.example\n"), "{told}");
    let (status, told) = files.ran(&[
        "kubeconfig",
        "ten.example",
        "--server",
        "https://ten.example:1",
        "--insecure-skip-tls-verify",
        "-c",
    ]);
    assert!(status == Some(0) && told.contains("https://ten.example:1"), "{told}");
    files.write("before.yaml", &format!("{LISTEN}{}", route("ten.example")));
    let before = files.path("before.yaml");
    let (status, told) = files.ran(&["plan", "--from", before.to_str().unwrap(), "-c"]);
    assert!(status == Some(0) && told.contains("twenty.example") && !told.contains("ten.example "), "{told}");
    let (_, told) = files.ran(&["doctor", "ten.example", "-c"]);
    assert!(told.contains("ten.example"), "{told}");
}

#[test]
fn g16_errors_in_included_files_name_the_file() {
    let refused = |content: &str, expected: &str| {
        let main = format!("{LISTEN}{INCLUDE}{}", route("main.example"));
        let one = route("one.example");
        Files::new(&[("c.yaml", &main), ("routes.d/1.yaml", &one), ("routes.d/2.yaml", content)]).refused(expected);
    };
    const ONLY: &str = "an included file has `routes` only";
    for (key, place) in [("listen: 127.0.0.1:0", "listen"), (INCLUDE.trim(), "include"), ("timeouts: {}", "timeouts")] {
        refused(
            &format!("{}{key}\n", route("two.example")),
            &format!("routes.d/2.yaml:3:1: unknown key `{place}`; {ONLY}"),
        );
    }
    refused("# nothing yet\n", "routes.d/2.yaml: the file is empty; expected at least `routes`");
    refused(
        "routes: []\n",
        "routes.d/2.yaml:1:9: routes: empty list; expected at least one route with `sni` and `upstream`",
    );
    refused("routes:\n  - {snii: a}\n", "routes.d/2.yaml:2:6: routes[0]: unknown key `snii`; did you mean `sni`?");
    refused(
        "routes:\n  - {sni: b.example, listener: x, upstream: \"h:1\"}\n",
        "routes.d/2.yaml:2:32: routes[0].listener: unknown listener `x`; expected one of 127.0.0.1:0",
    );
    refused(
        "routes:\n  - {sni: b.example, upstream: \"h:1\"}\n  - {sni: B.example, upstream: \"h:1\"}\n",
        "routes.d/2.yaml:3:5: routes[1]: `b.example` is already matched by routes[0], and neither route is more specific (line 2)",
    );
    // What two files claim.
    refused(
        &route("one.example"),
        "routes.d/2.yaml:2:5: routes[0]: `one.example` is already matched by routes[0] of routes.d/1.yaml:2, and neither route is more specific",
    );
    refused(
        "routes:\n  - {sni: b.example, upstream: \"h:1\"}\n  - {name: main.example, sni: c.example, upstream: \"h:1\"}\n",
        "routes.d/2.yaml:3:5: routes[1]: duplicate name `main.example`, already used by routes[0] of c.yaml:4",
    );
}

#[test]
fn g16_patterns_find_what_can_be_read() {
    let with = |include: &str| format!("{LISTEN}include: {include}\n{}", route("main.example"));
    let files = Files::new(&[("c.yaml", &with("routes.d/*.yaml"))]);
    let told = files.accepted();
    assert!(told.starts_with("c.yaml is valid.\nwarning    include: routes.d/*.yaml matches no file\n"), "{told}");

    files.write("c.yaml", &format!("{LISTEN}{INCLUDE}"));
    files.refused("c.yaml:2:10: include: matches no file, and this file has no `routes`");
    files.write("c.yaml", &with("routes.d/one.yaml"));
    files.refused(
        "c.yaml:2:10: include: `routes.d/one.yaml`: cannot read routes.d/one.yaml: No such file or directory (os error 2)",
    );
    for pattern in ["\"routes.d/**\"", "\"routes.d/[ab].yaml\"", "\"routes.d/{a,b}.yaml\""] {
        files.write("c.yaml", &with(pattern));
        files.refused(&format!(
            "c.yaml:2:10: include: `{}`: only `*` and `?` are wildcards, each within one directory; expected a path such as routes.d/*.yaml, relative to the directory of this file",
            pattern.trim_matches('"')
        ));
    }

    files.write("c.yaml", &with("routes.d/*.yaml"));
    fs::create_dir_all(files.path("routes.d/1.yaml")).unwrap();
    files.refused("c.yaml:2:10: include: `routes.d/*.yaml`: cannot read routes.d/1.yaml: not a regular file");
    fs::remove_dir(files.path("routes.d/1.yaml")).unwrap();
    mknodat(CWD, files.path("routes.d/2.yaml"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    files.refused("c.yaml:2:10: include: `routes.d/*.yaml`: cannot read routes.d/2.yaml: not a regular file");
    fs::remove_file(files.path("routes.d/2.yaml")).unwrap();
    std::os::unix::fs::symlink("none", files.path("routes.d/3.yaml")).unwrap();
    files.refused(
        "c.yaml:2:10: include: `routes.d/*.yaml`: cannot read routes.d/3.yaml: No such file or directory (os error 2)",
    );
}

#[test]
fn files_are_relative_to_the_one_that_names_them() {
    let files = Files::new(&[
        ("c.yaml", &format!("{LISTEN}include: \"*/routes.yaml\"\n")),
        (
            "one/routes.yaml",
            "routes: [{sni: a.example, deny: {file: deny}, upstream: {endpoints: \"h:1\", health_check: {tls: {ca_file: ca.pem}}}}]\n",
        ),
        ("one/deny", "192.0.2.1\n"),
        ("two/routes.yaml", "routes: [{sni: b.example, deny: {file: ../one/deny}, upstream: \"h:1\"}]\n"),
        ("three/README", "no routes"),
    ]);
    tls::Authority::new().write(&files.path("one"), "ca.pem");
    let told = files.accepted();
    assert!(told.contains("CA one/ca.pem") && told.contains("deny one/deny (1 network)"), "{told}");
    assert!(told.contains("deny two/../one/deny (1 network)"), "{told}");
}

#[test]
fn g17_lists_of_networks_may_be_in_files() {
    let main = "listen: [{address: \"127.0.0.1:0\", deny: {file: blocked}, accept_proxy: {from: [10.9.0.1, {file: balancers}]}}]
routes:
  - {sni: a.example, allow: [{file: office}, 10.1.0.0/16], deny: {file: blocked}, upstream: \"192.0.2.1:1\"}
";
    let files = Files::new(&[
        ("c.yaml", main),
        ("blocked", "# known\n198.51.100.0/24  # scanners\n\n2001:db8::/32\n10.1.0.7\n"),
        ("office", ""),
        ("balancers", "10.9.0.2\n"),
    ]);
    let told = files.accepted();
    for expected in [
        "files      4: this one, 0 included, 3 with networks\n",
        "127.0.0.1:0: allow all, deny blocked (3 networks); refuse with TLS alert; PROXY header required, from 10.9.0.1, balancers (1 network)\n",
        "access     allow 10.1.0.0/16, office (0 networks), deny blocked (3 networks)\n",
    ] {
        assert!(told.contains(expected), "{expected}\n{told}");
    }
    let explain = |client: &str| files.ran(&["explain", "--sni", "a.example", "--client", client, "-c"]).1;
    assert!(
        explain("10.1.0.8").contains("allowed: listener 127.0.0.1:0, not in deny; route a.example, allow 10.1.0.0/16")
    );
    let told = explain("10.1.0.7");
    assert!(told.contains("denied: listener 127.0.0.1:0, deny 10.1.0.7/32 of blocked;"), "{told}");
    assert!(explain("10.2.0.1").contains("denied: route a.example, not in allow"));

    let mut large: Vec<String> =
        (0..100_000).map(|number| format!("10.{}.{}.{}", number / 60_000, number / 240 % 250, number % 240)).collect();
    files.write("blocked", &large.join("\n"));
    assert!(files.accepted().contains("deny blocked (100000 networks)"));
    large[69_999] = "10.0.0.256".into();
    files.write("blocked", &large.join("\n"));
    const EXPECTED: &str = "expected a network such as 192.0.2.0/24 or \"2001:db8::/32\", or a single address";
    files.refused(&format!("c.yaml:1:41: listen[0].deny: blocked:70000: `10.0.0.256`: {EXPECTED}"));

    fs::remove_file(files.path("blocked")).unwrap();
    files.refused("c.yaml:1:41: listen[0].deny: blocked: No such file or directory (os error 2)");
    for (deny, expected) in [
        ("{files: blocked}", "c.yaml:1:41: listen[0].deny: unknown key `files`; did you mean `file`?"),
        ("{}", "c.yaml:1:41: listen[0].deny: missing key `file`"),
    ] {
        files.write("c.yaml", &main.replacen("{file: blocked}", deny, 1));
        let (status, told) = files.ran(&["check"]);
        assert_eq!(status, Some(78));
        assert!(told.contains(&expected["c.yaml:1:41: ".len()..]) && told.starts_with("snigate: c.yaml:1:4"), "{told}");
    }
}
