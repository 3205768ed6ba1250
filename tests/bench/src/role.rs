//! What a child process of a run does: serve, or carry out orders.
//!
//! A role speaks JSON lines: one when it is ready, then, if it is a client, one for each order that it reads. It ends with its standard
//! input.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};

use crate::http::{self, Http};
use crate::load::{self, Contender, Order};
use crate::mesh::{self, Hosted, Mesh};
use crate::nats::{self, Nats};
use crate::substream::{self, Substream};

/// One part in a run.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Role {
    /// Answers messages of a NATS server.
    NatsResponder {
        /// Where the server is.
        address: String,
    },
    /// Asks through a NATS server.
    NatsClient {
        /// Where the server is.
        address: String,
    },
    /// Serves HTTP.
    HttpServer,
    /// Calls over HTTP.
    HttpClient {
        /// Where the server is.
        address: String,
    },
    /// Echoes on libp2p substreams.
    SubstreamServer,
    /// Calls over a libp2p substream.
    SubstreamClient {
        /// Where the server is.
        address: String,
    },
    /// Hosts agents in the mesh.
    MeshHost(MeshArgs),
    /// Calls agents in the mesh.
    MeshClient(MeshArgs),
}

/// What both sides of the mesh need to know.
#[derive(Debug, clap::Args)]
pub(crate) struct MeshArgs {
    /// Where nodes keep their files.
    #[arg(long)]
    dir: PathBuf,
    /// Where nodes listen.
    #[arg(long)]
    listen: String,
    /// Nodes to join.
    #[arg(long)]
    join: Vec<String>,
    #[command(flatten)]
    hosted: Hosted,
}

/// Does one part until standard input ends.
pub(crate) async fn run(role: Role) -> Result<()> {
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    match role {
        Role::NatsResponder { address } => serve(nats::respond(&address, || say(&())), &mut input).await,
        Role::HttpServer => serve(http::serve(|address| say(&address)), &mut input).await,
        Role::SubstreamServer => serve(substream::serve(|address| say(&address)), &mut input).await,
        Role::MeshHost(args) => mesh::host(&args.dir, &args.listen, &args.hosted, |joins| say(&joins), ended(&mut input)).await,
        Role::NatsClient { address } => call(&Nats::connect(&address).await?, &mut input).await,
        Role::HttpClient { address } => call(&Http::new(address), &mut input).await,
        Role::SubstreamClient { address } => call(&Substream::connect(&address).await?, &mut input).await,
        Role::MeshClient(args) => {
            let mesh = Mesh::join(&args.dir, &args.listen, &args.join, &args.hosted).await?;
            call(&mesh, &mut input).await?;
            mesh.stop().await;
            Ok(())
        }
    }
}

type Input = Lines<BufReader<Stdin>>;

async fn serve(server: impl Future<Output = Result<()>>, input: &mut Input) -> Result<()> {
    tokio::select! {
        done = server => done,
        () = ended(input) => Ok(()),
    }
}

async fn ended(input: &mut Input) {
    while let Ok(Some(_)) = input.next_line().await {}
}

async fn call<C: Contender>(contender: &C, input: &mut Input) -> Result<()> {
    say(&())?;
    while let Some(line) = input.next_line().await? {
        let order: Order = serde_json::from_str(&line)?;
        match load::run(contender, &order).await {
            Ok(figures) => say(&figures)?,
            Err(error) => say(&json!({ "error": format!("{error:#}") }))?,
        }
    }
    Ok(())
}

fn say(what: &impl Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, what)?;
    writeln!(out)?;
    Ok(out.flush()?)
}
