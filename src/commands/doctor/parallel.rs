//! Runs checks in parallel, up to a limit.

use std::future::Future;

use tokio::sync::Semaphore;
use tokio::task::JoinError;

/// DNS lookups and connections in progress, over all routes.
const MAX_IN_PROGRESS: usize = 32;

/// The results are in the order of the tasks. A task must not wait for another call of this function.
pub(super) async fn run_all<F>(tasks: impl IntoIterator<Item = F>) -> Result<Vec<F::Output>, JoinError>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    static PERMITS: Semaphore = Semaphore::const_new(MAX_IN_PROGRESS);
    let limited = |task: F| async move {
        let _permit = PERMITS.acquire().await;
        task.await
    };
    let tasks: Vec<_> = tasks.into_iter().map(|task| tokio::spawn(limited(task))).collect();
    let mut results = Vec::with_capacity(tasks.len());
    for task in tasks {
        results.push(task.await?);
    }
    Ok(results)
}
