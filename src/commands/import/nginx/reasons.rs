//! Why a directive has no counterpart.

pub(super) fn of(words: &[&str]) -> String {
    let Some(name) = words.first() else { return "not understood".into() };
    let reason = match *name {
        "access_log" | "error_log" | "log_format" => "not needed: every connection is one log line on standard error",
        "worker_processes" | "worker_cpu_affinity" => {
            "not needed: there are as many `workers` as CPUs for this process"
        }
        "worker_connections" | "worker_rlimit_nofile" => {
            "not needed: `limits.connections` follows from the descriptors that the process may have"
        }
        "user" | "pid" | "daemon" | "master_process" | "load_module" | "env" | "lock_file" => {
            "not needed: left to systemd or the container"
        }
        "include" => "not read: put its lines in its place, or import it alone",
        "resolver" | "resolver_timeout" => {
            "not needed: names are looked up in the background, by the system's resolver"
        }
        "tcp_nodelay" | "proxy_socket_keepalive" => "not needed: always on",
        "preread_buffer_size" => "not needed: how large a hello may be is `limits.hello_bytes`",
        "proxy_buffer_size"
        | "variables_hash_max_size"
        | "map_hash_max_size"
        | "map_hash_bucket_size"
        | "variables_hash_bucket_size" => "not needed: sized by itself",
        "proxy_next_upstream" | "proxy_next_upstream_timeout" | "proxy_next_upstream_tries" => {
            "not needed: when an endpoint cannot be reached, the next one is tried within `connect.timeout`"
        }
        "limit_conn" | "limit_conn_zone" | "proxy_upload_rate" | "proxy_download_rate" => {
            "without a counterpart of its own; see `limits` and `max_connections`"
        }
        "proxy_half_close" => "not needed: half-closed connections are relayed; see `timeouts.half_close`",
        "set_real_ip_from" => "see `accept_proxy` of a listener",
        "status_zone" => "not needed: see `admin`",
        "worker_shutdown_timeout" => "see `timeouts.drain`",
        name if name.starts_with("ssl_") => "not needed: TLS does not end here",
        name if name.starts_with("proxy_ssl") => {
            "without a counterpart: the server gets the client's TLS, and the client verifies it"
        }
        _ => "without a known counterpart",
    };
    format!("`{name}`: {reason}")
}
