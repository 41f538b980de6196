//! The image, put together by hand where there is no container engine: what its `Containerfile` copies, and what every
//! engine adds. `scratch` has no files, so whatever the binary needs beyond that is missing here as it would be there.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::FOR_A_RELEASE_BUILD;
use crate::support::api_server::ApiServer;
use crate::support::network::{Answer, NameServer, inside};
use crate::support::pages::block;
use crate::support::{Router, eventually, tls, watchdog};

const CONTAINERFILE: &str = include_str!("../../../deploy/container/Containerfile");
const PAGE: &str = "deploy/container/README.md";

/// What follows this instruction, each time.
fn instructions(name: &str) -> impl Iterator<Item = &str> {
    CONTAINERFILE.lines().filter_map(move |line| line.strip_prefix(name)?.strip_prefix(' '))
}

/// The arguments of this instruction.
fn arguments(name: &str) -> Vec<String> {
    serde_json::from_str(instructions(name).next().unwrap()).unwrap()
}

/// Builds the binary as the README says, and lays out the image's files.
fn image() -> TempDir {
    watchdog::may_take(FOR_A_RELEASE_BUILD);
    let root = TempDir::new().unwrap();
    let build = block(PAGE, "build");
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = Command::new("sh").args(["-ec", &build]).current_dir(project).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    assert_eq!(instructions("FROM").collect::<Vec<_>>(), ["scratch"]);
    for copy in instructions("COPY") {
        let (from, to) = copy.split_once(' ').unwrap();
        let to = root.path().join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(project.join("target/image").join(from), to).unwrap();
    }
    assert!(block(PAGE, "image").trim_end().ends_with(" target/image"), "what the image is built from");
    root
}

/// As the image says, as the first process of its own container: a read-only root, no other process, no network but a
/// loopback. `mounts` is a shell command for what is mounted below the root, if anything.
fn run(root: &TempDir, mounts: &str) -> Router {
    let config = root.path().join("etc/snigate/snigate.yaml");
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec"]).arg(format!(
        "ip link set lo up; mount --bind . .; cd \"$PWD\"; {mounts}
         mount -o remount,bind,ro .; user=$1; shift; exec chroot --userspec=$user . \"$@\""
    ));
    command.arg("sh").arg(instructions("USER").next().unwrap()).args(arguments("ENTRYPOINT")).args(arguments("CMD"));
    // Engines set no other variables.
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir(root.path());
    Router::spawn(command, config, TempDir::new().unwrap())
}

/// The first process of the container, as it is called outside.
fn first_process(router: &Router) -> Pid {
    let unshare = router.pid();
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap();
    Pid::from_raw(children.trim().parse().unwrap()).unwrap()
}

const CONFIG: &str = "
listen: 127.0.0.1:6443
admin: 127.0.0.1:9443
routes:
  - sni: hosts.test
    upstream: {endpoints: \"hosts.test:6443\", health_check: {interval: 100ms, tls: {ca_file: ca.pem, server_name: hosts.test}, http: {}}}
  - sni: dns.test
    upstream: {endpoints: \"dns.test:6443\", resolve_every: 100ms}
";

#[test]
#[ignore = "needs root, unshare and ip"]
fn the_image_needs_nothing_but_what_it_has() {
    let root = image();
    let authority = tls::Authority::new();
    let etc = root.path().join("etc");
    fs::create_dir_all(etc.join("snigate")).unwrap();
    for directory in ["dev", "proc"] {
        fs::create_dir(root.path().join(directory)).unwrap();
    }
    fs::write(etc.join("snigate/snigate.yaml"), CONFIG).unwrap();
    authority.write(&etc.join("snigate"), "ca.pem");
    // What an engine adds. There is no nsswitch.conf.
    fs::write(etc.join("hosts"), "127.0.0.2 hosts.test\n").unwrap();
    fs::write(etc.join("resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n").unwrap();
    let opened = Command::new("chmod").args(["-R", "a+rX"]).arg(root.path()).status().unwrap();
    assert!(opened.success());

    // First without /proc and /dev, which every engine mounts: what would be read there is not needed to serve.
    for mounts in ["", "mount -t proc proc proc; mount --bind /dev dev;"] {
        let mut router = run(&root, mounts);
        router.wait("that it listens", |line| line["message"] == "listening" && line["listener"] == "_admin");
        let process = first_process(&router);
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        assert!(status.contains("\nUid:\t65532\t65532\t65532\t65532\n"), "{status}");
        assert!(status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")), "{status}");

        inside(router.pid(), || {
            let _servers = [("127.0.0.2", "hosts.test"), ("127.0.0.3", "dns.test")].map(|(address, name)| {
                ApiServer::start_on(TcpListener::bind((address, 6443)).unwrap(), &authority, name)
            });
            let _names = NameServer::start(Answer::Addresses(vec!["127.0.0.3".parse().unwrap()]));
            router.wait("a name from DNS", |line| {
                line["message"] == "addresses changed" && line["added"] == "127.0.0.3:6443"
            });
            for name in ["hosts.test", "dns.test"] {
                let answer = tls::get("127.0.0.1:6443".parse().unwrap(), &authority, name, None);
                assert_eq!(answer.as_deref(), Ok("ok"), "{name} {:?}", router.log());
            }
            let checked = "snigate_endpoint_certificate_expiry_timestamp_seconds{route=\"hosts.test\"";
            eventually("a verified check", || router.get("/metrics").1.contains(checked));
            assert_eq!(router.get("/readyz").0, 200);
            assert_eq!(router.get("/metrics").1.contains("process_open_fds"), !mounts.is_empty());
        });
        assert!(router.log().iter().all(|line| line["message"] != "sandbox incomplete"), "{:?}", router.log());
        kill_process(process, Signal::TERM).unwrap();
        assert_eq!(router.exit().code(), Some(0));
    }
}

/// The instructions of a Containerfile, with continued lines joined.
fn lines_of(containerfile: &str) -> Vec<String> {
    let joined = containerfile.replace("\\\n", " ");
    joined.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(ToOwned::to_owned).collect()
}

#[test]
#[ignore = "needs a release build"]
fn the_image_from_source_has_the_same_files() {
    let root = image();
    let lines = lines_of(include_str!("../../../deploy/container/Containerfile.source"));
    let last = lines.iter().rposition(|line| line.starts_with("FROM ")).unwrap();
    let (build, own) = lines.split_at(last);
    let [from, workdir, copy, run] = build else { panic!("{build:?}") };
    assert_eq!([&**from, workdir, copy], ["FROM rust:1-slim AS build", "WORKDIR /src", "COPY . ."]);
    assert_eq!(own[1], "COPY --from=build /image /");
    let plain = lines_of(CONTAINERFILE);
    let settings =
        |lines: &[String]| -> Vec<String> { lines.iter().filter(|line| !line.starts_with("COPY ")).cloned().collect() };
    assert_eq!(settings(own), settings(&plain), "the same user, port and command");

    let built = TempDir::new().unwrap();
    let command = run.strip_prefix("RUN ").unwrap().replace("/image/", &format!("{}/", built.path().display()));
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let done = Command::new("sh").args(["-ec", &command]).current_dir(project).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for file in ["usr/bin/snigate", "usr/share/doc/snigate/LICENSE"] {
        let read = |root: &TempDir| fs::read(root.path().join(file)).unwrap();
        assert!(read(&built) == read(&root), "{file}");
    }
}

#[test]
fn compose_mounts_a_configuration_that_is_valid_where_its_ports_are() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/container");
    let text = fs::read_to_string(directory.join("compose.yaml")).unwrap();
    let compose: serde_json::Value = serde_yaml::from_str(&text).unwrap();
    let service = &compose["services"]["snigate"];
    let context = directory.join(service["build"]["context"].as_str().unwrap());
    assert!(context.join(service["build"]["dockerfile"].as_str().unwrap()).exists());
    let image = block(PAGE, "source");
    assert!(image.contains(&format!(" -t {} ", service["image"].as_str().unwrap())), "{image}");
    let (mounted, to) = service["volumes"][0].as_str().unwrap().split_once(':').unwrap();
    let config = Path::new(to.trim_end_matches(":ro")).join("snigate.yaml");
    assert_eq!(arguments("CMD")[2], config.to_str().unwrap());
    let checked =
        crate::support::snigate().arg("check").arg(directory.join(mounted).join("snigate.yaml")).output().unwrap();
    let told = String::from_utf8(checked.stdout).unwrap();
    let port = service["ports"][0].as_str().unwrap().split_once(':').unwrap().1;
    assert!(told.contains(&format!("0.0.0.0:{port}: allow all")), "{told}");
    assert_eq!(instructions("EXPOSE").next(), Some(port));
}
