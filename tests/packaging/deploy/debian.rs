//! The Debian package, and the commands to install without one, in a root that is thrown away.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use super::{FOR_A_RELEASE_BUILD, deployed, values};
use crate::support::pages::block;
use crate::support::watchdog;

const PAGE: &str = "deploy/systemd/README.md";
const UNIT: &str = include_str!("../../../deploy/systemd/snigate.service");

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap()
}

/// What it said; it must succeed.
fn told(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A root where dpkg has installed nothing yet.
fn empty_root() -> TempDir {
    let root = TempDir::new().unwrap();
    for directory in ["info", "updates", "triggers"] {
        fs::create_dir_all(root.path().join("var/lib/dpkg").join(directory)).unwrap();
    }
    for file in ["status", "available"] {
        fs::write(root.path().join("var/lib/dpkg").join(file), "").unwrap();
    }
    root
}

/// The binary and the configuration that are installed there work, and the unit starts the one with the other.
fn is_complete(root: &Path, unit: &str) {
    assert_eq!(fs::read_to_string(root.join(unit)).unwrap(), UNIT);
    let start: Vec<&str> = values(UNIT, "ExecStart")[0].split(' ').collect();
    let [binary, "run", "-c", config] = *start else { panic!("{start:?}") };
    let there = |path: &str| root.join(path.trim_start_matches('/')).to_str().unwrap().to_owned();
    let (binary, config) = (there(binary), there(config));
    assert_eq!(told(&binary, &["-V"]), concat!("snigate ", env!("CARGO_PKG_VERSION"), "\n"));
    let commit = told("git", &["rev-parse", "--short=12", "HEAD"]);
    let version = format!("snigate {} ({})\n", env!("CARGO_PKG_VERSION"), commit.trim());
    assert_eq!(told(&binary, &["--version"]), version);
    assert_eq!(run(&binary, &["demo", "--once"]).status.code(), Some(2), "it is built without the demo");
    let checked = told(&binary, &["check", &config]);
    let socket = fs::read_to_string(deployed("systemd/snigate.socket")).unwrap();
    assert!(checked.contains(&format!("\n  {}: allow all", values(&socket, "ListenStream")[0])), "{checked}");
}

#[test]
#[ignore = "needs root, cargo-deb and dpkg"]
fn the_package_installs_upgrades_and_goes_without_a_script() {
    watchdog::may_take(FOR_A_RELEASE_BUILD);
    let package = block(PAGE, "package");
    let (build, install) = package.trim().split_once('\n').unwrap();
    told("sh", &["-ec", build]);
    let pattern = install.strip_prefix("dpkg -i ").unwrap();
    let package = told("sh", &["-ec", &format!("ls -t {pattern}")]).lines().next().unwrap().to_owned();

    let control = told("dpkg-deb", &["-f", &package]);
    assert!(control.starts_with("Package: snigate\n") && control.contains("\nDepends: libc6 (>= "), "{control}");
    let scripts = told("sh", &["-ec", &format!("dpkg-deb --ctrl-tarfile {package} | tar -t | sort | xargs")]);
    assert!(scripts.split_whitespace().all(|file| ["./", "./control", "./conffiles", "./md5sums"].contains(&file)));

    let root = empty_root();
    let dpkg = |arguments: &[&str]| {
        let into = format!("--root={}", root.path().display());
        told("dpkg", &[&["--force-depends", &into], arguments].concat())
    };
    dpkg(&["-i", &package]);
    is_complete(root.path(), "usr/lib/systemd/system/snigate.service");
    let config = root.path().join("etc/snigate/snigate.yaml");
    let installed = fs::read_to_string(&config).unwrap();
    for named in installed.split([' ', '=', '\n']).filter(|word| word.starts_with("/usr/share/doc/snigate")) {
        assert!(root.path().join(named[1..].trim_end_matches([',', '.'])).exists(), "{named}");
    }
    for there in [
        "bash-completion/completions/snigate",
        "fish/vendor_completions.d/snigate.fish",
        "zsh/vendor-completions/_snigate",
        "man/man1/snigate.1.gz",
        "man/man5/snigate.yaml.5.gz",
        "doc/snigate/docs/troubleshooting.md",
    ] {
        assert!(root.path().join("usr/share").join(there).exists(), "{there}");
    }

    let changed = format!("{installed}# ours\n");
    fs::write(&config, &changed).unwrap();
    dpkg(&["-i", &package]);
    assert_eq!(fs::read_to_string(&config).unwrap(), changed);
    dpkg(&["-r", "snigate"]);
    assert!(config.exists() && !root.path().join("usr/bin/snigate").exists());
    dpkg(&["-P", "snigate"]);
    assert!(!config.exists());
}

#[test]
#[ignore = "needs systemd"]
fn the_commands_to_install_by_hand_work() {
    watchdog::may_take(FOR_A_RELEASE_BUILD);
    let root = TempDir::new().unwrap();
    let at = |path: &str| format!(" {}{path}", root.path().display());
    let by_hand = block(PAGE, "by-hand").replace(" /usr", &at("/usr")).replace(" /etc", &at("/etc"));
    told("sh", &["-ec", &by_hand]);
    is_complete(root.path(), "etc/systemd/system/snigate.service");

    let then = block(PAGE, "then");
    assert_eq!(
        then.lines().collect::<Vec<_>>(),
        ["snigate check /etc/snigate/snigate.yaml", "systemctl daemon-reload", "systemctl enable --now snigate"]
    );
    // There is no systemd to talk to here; it enables in another root all the same.
    told("systemctl", &[&format!("--root={}", root.path().display()), "enable", "snigate"]);
    let wanted = root.path().join("etc/systemd/system/multi-user.target.wants/snigate.service");
    assert!(wanted.is_symlink());
}

#[test]
#[ignore = "needs systemd-analyze"]
fn systemd_understands_the_units_and_the_drop_in() {
    let directory = TempDir::new().unwrap();
    let write = |name: &str, text: &str| -> PathBuf {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text.replace("/usr/bin/snigate", env!("CARGO_BIN_EXE_snigate"))).unwrap();
        path
    };
    let verify = |path: &Path| {
        let output = run("systemd-analyze", &["verify", "--man=no", path.to_str().unwrap()]);
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let unit = write("snigate.service", UNIT);
    let socket = write("snigate.socket", &fs::read_to_string(deployed("systemd/snigate.socket")).unwrap());
    let drop_in = block(PAGE, "token");
    write("snigate.service.d/token.conf", &drop_in);
    assert_eq!([verify(&unit), verify(&socket)], [(), ()].map(|()| (true, String::new())));
    // Otherwise it would say nothing of a drop-in.
    write("snigate.service.d/token.conf", &drop_in.replace("LoadCredential", "LoadCredentials"));
    assert!(verify(&unit).1.contains("Unknown key 'LoadCredentials'"));
}
