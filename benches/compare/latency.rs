//! Latency of sparse messages, with and without `latency.spin`: one message and its answer at a time on each stream, at a
//! fixed rate for all streams together.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use clap::Args;

use crate::Common;
