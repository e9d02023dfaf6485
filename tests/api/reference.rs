//! A client written only from the public description of the API.

use std::process::Command;

use crate::server::Server;

#[tokio::test]
async fn a_client_written_from_the_public_description_works_unchanged() {
    let server = Server::start().await;
    let url = server.base_url.clone();
    let run = move || Command::new("python3").args(["tests/api/reference_client.py", &url]).output().unwrap();
    let client = tokio::task::spawn_blocking(run).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&client.stdout), "everything holds\n", "{client:?}");
    assert!(client.status.success());
}
