//! REST under `/v1` (interface.md, "REST").
//!
//! Handlers read a bounded body, translate it into one call of the node's handle, and write the answer; the shapes are in [`types`].
//! `/openapi.json` is made from the same declarations as the routes, so the two cannot disagree.

mod agents;
pub(super) mod body;
mod contexts;
mod events;
mod find;
mod invoke;
mod node;
mod offers;
mod trust;
pub(super) mod types;

use axum::Router;
use axum::routing::get;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::node::Handle;

/// Paths that people may mean when they mistype one.
pub(super) const PATHS: &[&str] = &[
    "/v1/node",
    "/v1/peers",
    "/v1/agents",
    "/v1/find",
    "/v1/offers",
    "/v1/invoke",
    "/v1/contexts",
    "/v1/trust",
    "/v1/trust/receipts",
    "/v1/trust/pins",
    "/v1/doctor",
    "/v1/events",
    "/health",
    "/ready",
    "/metrics",
    "/openapi.json",
];

#[derive(OpenApi)]
#[openapi(
    info(title = "Meshwork", description = "A node of a peer-to-peer mesh of AI agents. Everything but /health needs the bearer token."),
    components(schemas(types::ErrorDocument))
)]
struct Description;

/// All routes.
pub(super) fn router() -> Router<Handle> {
    let (router, description) = described();
    let text = description.to_json().unwrap_or_default();
    router.route("/openapi.json", get(|| async move { ([(axum::http::header::CONTENT_TYPE, "application/json")], text) }))
}

fn described() -> (Router<Handle>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(node::node))
        .routes(routes!(node::peers))
        .routes(routes!(trust::trust))
        .routes(routes!(trust::receipts))
        .routes(routes!(trust::pins))
        .routes(routes!(trust::pin, trust::unpin))
        .routes(routes!(node::doctor))
        .routes(routes!(node::health))
        .routes(routes!(node::ready))
        .routes(routes!(node::metrics))
        .routes(routes!(agents::list, agents::attach))
        .routes(routes!(agents::show, agents::replace, agents::detach))
        .routes(routes!(find::find))
        .routes(routes!(offers::offers))
        .routes(routes!(invoke::invoke))
        .routes(routes!(invoke::cancel))
        .routes(routes!(contexts::list, contexts::create))
        .routes(routes!(contexts::show, contexts::change, contexts::let_go))
        .routes(routes!(contexts::share))
        .routes(routes!(contexts::checkpoint))
        .routes(routes!(contexts::fork))
        .routes(routes!(contexts::merge))
        .routes(routes!(contexts::history))
        .routes(routes!(contexts::events))
        .routes(routes!(events::events))
        .merge(super::aitp::routes())
        .split_for_parts()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_that_is_suggested_is_described() {
        let (_, description) = described();
        let missing = |path: &&&str| **path != "/openapi.json" && !description.paths.paths.contains_key(**path);
        assert_eq!(PATHS.iter().chain(super::super::aitp::PATHS).filter(missing).collect::<Vec<_>>(), [&""; 0]);
    }
}
