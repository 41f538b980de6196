//! The manual page and shell completions.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::cli::schema::{keys, schema};
use crate::support::{all_output, is_written, snigate};

const COMMANDS: [&str; 8] = ["run", "check", "explain", "plan", "import", "schema", "completions", "man"];

fn output_of(arguments: &[&str]) -> String {
    let output = snigate().args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The output of a program with this standard input; it must succeed.
fn given(program: &mut Command, input: &str) -> String {
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = all_output(&output);
    assert!(output.status.success(), "{told}");
    told
}

/// A shell in the directory of the files that are installed for it, with the binary on its path.
fn shell(name: &str) -> Command {
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_snigate"));
    let path = format!("{}:{}", binary.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new(name);
    shell.env("PATH", path).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/completions"));
    shell
}

#[test]
fn completions_of_every_shell_have_every_command_and_option() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = output_of(&["completions", shell]);
        for word in COMMANDS.iter().chain(&["demo", "log-format", "hello"]) {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(snigate().args(["completions", "csh"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn bash_completes() {
    assert_eq!(given(Command::new("bash").arg("-n"), &output_of(&["completions", "bash"])), "");
    let complete = |words: &str| {
        let script = format!(
            "source snigate.bash
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_snigate snigate \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"
echo ${{COMPREPLY[@]}}"
        );
        given(&mut shell("bash"), &script)
    };
    assert_eq!(complete("snigate exp"), "explain\n");
    assert_eq!(complete("snigate explain --h"), "--hello --help\n");
    assert_eq!(complete("snigate run --log-format j"), "json\n");
}

#[test]
#[ignore = "needs fish"]
fn fish_completes() {
    let told = given(shell("fish").args(["-c", "source snigate.fish; complete -C 'snigate explain --s'"]), "");
    assert_eq!(told, "--sni\tServer name (SNI) that the client sends\n");
}

#[test]
#[ignore = "needs zsh"]
fn zsh_completes() {
    let script = "zmodload zsh/zpty
zpty terminal zsh -f -i
zpty -w terminal \"fpath=($PWD \\$fpath); autoload -Uz compinit; compinit -u -D; print ready-\\$((6 * 7))\"
zpty -r terminal told '*ready-42*'
for part whole in expl explain impo import; do
    zpty -n -w terminal \"snigate $part\"$'\\t'
    zpty -r terminal told \"*snigate $whole*\" && print $whole
    zpty -n -w terminal $'\\x15'
done";
    // zsh waits forever for a completion that does not come.
    let mut zsh = shell("timeout");
    assert_eq!(given(zsh.args(["30", "zsh", "-f", "-c", script]), ""), "explain\nimport\n");
}

#[test]
fn the_shipped_page_is_current() {
    let page = output_of(&["man"]);
    if cfg!(feature = "gateway") {
        // Packages are built without it, and so is the page that they have.
        assert!(page.contains("\n.SH \"snigate gateway\"\n") && page.contains("\\-\\-publish\\-service"));
    } else {
        assert!(!page.contains("snigate gateway"));
        is_written("deploy/man/snigate.1", &page);
    }
    for heading in COMMANDS.map(|command| format!("\n.SH \"snigate {command}\"\n")) {
        assert_eq!(page.matches(&heading).count(), 1, "{heading}");
    }
    assert!(!page.contains("snigate demo"));
    for told in ["\n.SH \"EXIT STATUS\"\n", "\\-\\-log\\-format", "\n.SH SIGNALS\n", env!("CARGO_PKG_VERSION")] {
        assert!(page.contains(told), "{told}");
    }
}

#[test]
fn the_page_of_the_configuration_has_every_key() {
    let page = output_of(&["man", "config"]);
    is_written("deploy/man/snigate.yaml.5", &page);
    let keys = keys(&schema());
    for key in &keys {
        let heading = page.lines().filter(|line| line.replace("[]", "").replace("\\&", "") == format!("\\fB{key}\\fR"));
        assert_eq!(heading.count(), 1, "{key}");
    }
    assert_eq!(page.matches("\n.TP\n").count(), keys.len());
    for said in [".TH snigate.yaml 5 ", "fBleast_connections", "Default: 10s", env!("CARGO_PKG_VERSION")] {
        assert!(page.contains(said), "{said}");
    }
}

#[test]
#[ignore = "needs groff"]
fn groff_has_nothing_to_say_about_the_pages() {
    for page in ["command", "config"] {
        assert_eq!(given(Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z"]), &output_of(&["man", page])), "");
    }
}
