//! Every command on the pages is typed: in the tests that take a block by its name, or here, in the order of the page, beside
//! a running router. A comment at its end says which status it exits with, if that is not 0.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::support::backend::free;
use crate::support::pages::{Block, all, block, blocks, code, configurations, sources};
use crate::support::{Router, all_output, tls};

/// Blocks of commands that no test types, and why.
const NOT_TYPED: [(&str, &str, &str); 37] = [
    ("README.md", "demo", ".ci/run does, and other tests type `demo --once`"),
    ("README.md", "test", "it types this"),
    ("README.md", "run", "does not end; every test of a router starts it so"),
    ("CONTRIBUTING.md", "build", ".ci/run builds all of this"),
    ("CONTRIBUTING.md", "gateway", ".ci/run does"),
    ("CONTRIBUTING.md", "test", ".ci/run does"),
    ("CONTRIBUTING.md", "model", ".ci/run does"),
    ("CONTRIBUTING.md", "interleavings", ".ci/run does"),
    ("CONTRIBUTING.md", "coverage", "needs tools of LLVM; .ci/run does"),
    ("CONTRIBUTING.md", "mutants", "takes an hour"),
    ("CONTRIBUTING.md", "write", "writes into the repository"),
    ("deploy/container/README.md", "image", "needs podman"),
    ("deploy/container/README.md", "run", "needs podman"),
    (
        "deploy/container/README.md",
        "compose",
        "needs docker; the file is compared with the image and its configuration",
    ),
    (
        "deploy/systemd/README.md",
        "then",
        "`enable` is typed for another root; the rest needs systemd as the first process",
    ),
    ("deploy/systemd/README.md", "upgrade", "needs systemd as the first process; the signal is tested without it"),
    ("docs/operations.md", "upgrade-by-systemd", "needs systemd as the first process; the signal is tested without it"),
    ("docs/operations.md", "doctor", "asks the network; tests/cli/doctor.rs types the like"),
    ("docs/operations.md", "ctl-top", "needs a terminal; tests/control/top.rs types it in tmux"),
    ("docs/operations.md", "ctl-curl", "needs curl; tests/control/socket.rs sends the like"),
    ("docs/operations.md", "rotate", "needs rotatelogs, and does not end"),
    ("docs/node-shim.md", "on-a-node", "needs a node of a cluster; the addresses are compared with the configuration"),
    ("docs/fuzzing.md", "toolchain", "installs; .ci/run does the like"),
    ("docs/fuzzing.md", "run", "does not end; .ci/run runs each target for seconds"),
    ("docs/fuzzing.md", "run-from-seeds", "as above"),
    ("docs/fuzzing.md", "oss-fuzz", ".ci/run does"),
    ("docs/fuzzing.md", "reproduce", "needs a crash"),
    ("docs/fuzzing.md", "merge", "writes among the seeds"),
    ("docs/fuzzing.md", "replay", "`cargo test` has it"),
    ("docs/fuzzing.md", "lock", ".ci/run does, with --locked"),
    ("docs/kubernetes.md", "apply", "needs a cluster; tests/conformance types it"),
    ("docs/kubernetes.md", "offline", "needs the feature; tests/gateway/offline.rs types it"),
    ("tests/mutants.md", "again", "installs, and takes an hour"),
    ("tests/hellos/README.md", "configuration", "installs; tests/hello/corpus.rs types the like"),
    ("tests/hellos/README.md", "try", "as above"),
    ("tests/hellos/README.md", "write", "writes among the hellos"),
    ("deploy/kubernetes/README.md", "apply", "needs a cluster; tests/conformance types it"),
];

/// Page and name of the blocks that tests take by their names.
fn taken() -> BTreeSet<(String, String)> {
    let mut taken = BTreeSet::new();
    for path in sources("tests") {
        let code: String = std::fs::read_to_string(&path).unwrap().split_whitespace().collect();
        for call in code.split("block(").skip(1) {
            let Some((page, rest)) = call.split_once(",\"") else { continue };
            let constant = format!("const{page}:&str=\"");
            let named = || code.split(&*constant).nth(1).and_then(|rest| rest.split('"').next());
            let page = page.strip_prefix('"').and_then(|page| page.strip_suffix('"')).or_else(named);
            if let (Some(page), Some(name)) = (page, rest.split('"').next()) {
                taken.insert((page.to_owned(), name.to_owned()));
            }
        }
    }
    assert!(taken.len() > 10, "{taken:?}");
    taken
}

fn is_listed(page: &str, name: &str) -> bool {
    NOT_TYPED.iter().any(|(listed, block, _)| (*listed, *block) == (page, name))
}

/// Blocks of commands that are typed here.
fn typed_here() -> Vec<Block> {
    let taken = taken();
    let of_shell = all().into_iter().flat_map(|page| blocks(&page)).filter(|block| block.kind == "sh");
    let mut found = Vec::new();
    for block in of_shell {
        let Some(name) = block.name.clone() else { panic!("{}: a block without a name:\n{}", block.page, block.text) };
        if !taken.contains(&(block.page.clone(), name.clone())) && !is_listed(&block.page, &name) {
            found.push(block);
        }
    }
    found
}

/// Runs of lines that belong together, and the status that each exits with.
fn commands(text: &str) -> Vec<(String, i32)> {
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim).filter(|line| !line.is_empty());
    let status = |line: &str| line.split("# exit status ").nth(1).map_or(0, |rest| rest[..1].parse().unwrap());
    lines.map(|line| (line.to_owned(), status(line))).collect()
}

/// Types the blocks of each page that need this program (or not) in a directory of its own, beside a router that runs the page's
/// configuration, or else the README's.
fn type_all(kubectl: bool) -> usize {
    let mut count = 0;
    let all = typed_here();
    for page in all.iter().map(|block| &block.page).collect::<BTreeSet<_>>() {
        let own = configurations().into_iter().find(|block| block.page == *page);
        let config = own.map_or_else(|| block("README.md", "example"), |block| block.text);
        let config = if config.contains("admin:") { config } else { format!("admin: 127.0.0.1:9443\n{config}") };
        let (listener, admin) = (free().to_string(), free().to_string());
        let router = Router::start(&config.replace("[::]:6443", &listener).replace("127.0.0.1:9443", &admin));
        let directory = router.config.parent().unwrap();
        tls::Authority::new().write(directory, "dev-ca.pem");
        std::fs::copy(&router.config, directory.join("running.yaml")).unwrap();
        std::fs::create_dir(directory.join(".kube")).unwrap();
        std::fs::write(directory.join(".kube/config"), KUBECONFIG).unwrap();
        let binaries = Path::new(env!("CARGO_BIN_EXE_snigate")).parent().unwrap();
        let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap());
        for block in all.iter().filter(|block| block.page == *page) {
            if block.text.contains("kubectl ") != kubectl {
                continue;
            }
            for (command, status) in commands(&block.text) {
                let mut shell = Command::new("sh");
                shell.args(["-ec", &command.replace("127.0.0.1:9443", &admin)]).current_dir(directory);
                let output = shell.env("PATH", &path).env("HOME", directory).env_remove("RUST_LOG").output().unwrap();
                assert_eq!(output.status.code(), Some(status), "{page}: {command}\n{}", all_output(&output));
                count += 1;
            }
        }
    }
    count
}

const KUBECONFIG: &str = "{apiVersion: v1, kind: Config, current-context: dev, contexts: [{name: dev, context: {cluster: dev, user: jane}}],
clusters: [{name: dev, cluster: {server: 'https://10.0.0.1:6443', certificate-authority: ../dev-ca.pem}}], users: [{name: jane, user: {}}]}";

#[test]
fn commands_do_what_the_pages_say() {
    let typed = type_all(false);
    assert!(typed > 6, "{typed}");
}

#[test]
#[ignore = "needs kubectl"]
fn kubectl_accepts_the_commands() {
    let typed = type_all(true);
    assert!(typed >= 3, "{typed}");
}

#[test]
fn blocks_that_are_not_typed_exist() {
    for (page, name, _) in NOT_TYPED {
        block(page, name);
    }
}

#[test]
#[ignore = "needs nginx"]
fn nginx_understands_its_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let issued = tls::Authority::new().issue("lab.example.com");
    std::fs::write(directory.path().join("lab.key"), issued.key.serialize_pem()).unwrap();
    issued.write(directory.path(), "lab");
    for name in ["port-80", "nginx-behind"] {
        let servers = block("docs/self-hosting.md", name);
        let text = format!(
            "pid {0}/pid; error_log stderr; events {{}} http {{ access_log off; {servers} }}",
            directory.path().display()
        );
        let path = directory.path().join("nginx.conf");
        std::fs::write(
            &path,
            text.replace("listen 80", "listen 127.0.0.1:18080").replace("listen 443", "listen 127.0.0.1:18443"),
        )
        .unwrap();
        let output = Command::new("nginx").arg("-t").arg("-c").arg(&path).output().unwrap();
        assert!(output.status.success(), "{name}: {}", all_output(&output));
    }
}

/// Modules and tests that are named as `module::test`.
#[test]
fn tests_that_pages_name_exist() {
    let mut count = 0;
    let text: String = sources("tests").iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    for path in ["SECURITY.md", "docs/assurance.md"] {
        let spans = code(path).into_iter().flat_map(|span| span.split(' ').map(Into::into).collect::<Vec<String>>());
        for name in spans.filter(|word| word.contains("::")) {
            for part in name.split("::") {
                let is_there = [format!("fn {part}("), format!("mod {part};")].iter().any(|item| text.contains(item));
                assert!(is_there, "{path}: there is no {name}");
            }
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
}
