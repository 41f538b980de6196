//! Why a directive is not translated.

use super::syntax::Directive;
use crate::commands::import::notes::Notes;

pub(super) fn explain(directive: &Directive, notes: &mut Notes) {
    let location = directive.whole();
    let Some(name) = directive.words.first() else { return notes.note(&location, "not understood") };
    if is_not_needed(name) {
        return notes.not_needed(&location);
    }
    let reason = match name.as_str() {
        "include" => "not read: put its lines in its place, or import the file alone",
        "limit_conn" | "limit_conn_zone" => "only limits by client address can be translated; see `limits`",
        "proxy_upload_rate" | "proxy_download_rate" => "ignored: snigate does not limit bandwidth",
        "set_real_ip_from" => "see `accept_proxy` of a listener",
        "worker_shutdown_timeout" => "see `timeouts.drain`",
        name if name.starts_with("proxy_ssl") => {
            "ignored: the client's own TLS connection reaches the server, and the client verifies it"
        }
        _ => "no equivalent",
    };
    notes.note(&location, format!("`{name}`: {reason}"));
}

fn is_not_needed(name: &str) -> bool {
    NOT_NEEDED.contains(&name) || name.starts_with("ssl_")
}

#[rustfmt::skip]
const NOT_NEEDED: &[&str] = &[
    "access_log", "error_log", "log_format", "status_zone",
    "worker_processes", "worker_cpu_affinity", "worker_connections", "worker_rlimit_nofile",
    "user", "pid", "daemon", "master_process", "load_module", "env", "lock_file", "resolver", "resolver_timeout",
    "tcp_nodelay", "proxy_socket_keepalive", "proxy_half_close", "preread_buffer_size", "proxy_buffer_size",
    "variables_hash_max_size", "variables_hash_bucket_size", "map_hash_max_size", "map_hash_bucket_size",
    "proxy_next_upstream", "proxy_next_upstream_timeout", "proxy_next_upstream_tries",
];
