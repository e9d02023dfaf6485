//! `template` and `handlers`: the templates, and what runs their steps.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use serde_json::json;
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::template::{self, graph};
use tasker_worker_rust::{Config, Error, HandlerRegistry, workflows};

use super::output::Table;
use super::{Answer, Output, output};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Report every mistake in a directory of templates, and exit with 64 if there is one.
    Validate {
        /// A directory of YAML files, or one file.
        #[arg(default_value = "config/workflows", value_name = "DIR")]
        directory: PathBuf,
    },
    /// Draw a template's steps.
    Graph {
        /// The YAML file.
        file: PathBuf,
        /// For the terminal, for Markdown, or for Graphviz.
        #[arg(long, value_enum, default_value_t = Format::Ascii)]
        format: Format,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Format {
    Ascii,
    Mermaid,
    Dot,
}

impl Command {
    pub(super) fn run(&self, output: Output) -> Result<Answer, Error> {
        match self {
            Self::Validate { directory } => validate(directory, output),
            Self::Graph { file, format } => {
                let template = read(file)?;
                print!(
                    "{}",
                    match format {
                        Format::Ascii => graph::graph_ascii(&template),
                        Format::Mermaid => graph::graph_mermaid(&template),
                        Format::Dot => graph::graph_dot(&template),
                    }
                );
                Ok(Answer::Yes)
            }
        }
    }
}

fn validate(path: &Path, output: Output) -> Result<Answer, Error> {
    let templates = if path.is_dir() {
        Catalog::load(path, environment().as_deref())?.all()
    } else {
        vec![std::sync::Arc::new(read(path)?)]
    };
    // How many namespaces share a worker is the worker's to check.
    let too_long = Config::load().unwrap_or_default().lease(1).exceeded(&templates);
    if !too_long.is_empty() {
        return Err(Error::Templates(too_long));
    }
    if output == Output::Json {
        let rows: Vec<_> = templates
            .iter()
            .map(|t| json!({ "namespace": t.namespace, "name": t.name, "version": t.version, "steps": t.steps.len() }))
            .collect();
        output::json(&json!({ "templates": rows, "mistakes": [] }));
        return Ok(Answer::Yes);
    }
    let mut table = Table::new(["NAMESPACE", "NAME", "VERSION", "STEPS"]);
    for template in &templates {
        table.row([
            template.namespace.clone(),
            template.name.clone(),
            template.version.clone(),
            template.steps.len().to_string(),
        ]);
    }
    table.print();
    Ok(Answer::Yes)
}

fn read(file: &Path) -> Result<template::Template, Error> {
    let text =
        std::fs::read_to_string(file).map_err(|source| Error::File { path: file.to_owned(), source })?;
    let parsed = template::parse(&text, environment().as_deref()).map_err(|mistakes| {
        Error::Templates(
            mistakes.into_iter().map(|mistake| format!("{}: {mistake}", file.display())).collect(),
        )
    })?;
    Ok(parsed.template)
}

/// The environment whose overrides apply. Broken settings are another command's business.
fn environment() -> Option<String> {
    Config::load().ok().map(|config| config.environment)
}

/// `handlers`: every registered step and every step of a template, side by side.
pub(super) fn handlers(config: Config, output: Output) -> Result<Answer, Error> {
    let mut registry = HandlerRegistry::new();
    for namespace in workflows::all() {
        registry.add(namespace);
    }
    let directory = &config.worker.task_templates.template_directory;
    let catalog = Catalog::load(directory, Some(&config.environment))?;
    let mut rows = Vec::new();
    for template in catalog.all() {
        for step in &template.steps {
            let found = registry.contains(&template.namespace, &step.name, &step.handler.callable);
            rows.push((template.namespace.clone(), template.name.clone(), step.name.clone(), found));
        }
    }
    let missing = rows.iter().filter(|(.., found)| !found).count();
    match output {
        Output::Json => output::json(
            &rows
                .iter()
                .map(|(namespace, template, step, found)| {
                    json!({ "namespace": namespace, "template": template, "step": step, "handler": found })
                })
                .collect::<Vec<_>>(),
        ),
        Output::Text => {
            let mut table = Table::new(["NAMESPACE", "TEMPLATE", "STEP", "HANDLER"]);
            for (namespace, template, step, found) in rows {
                table.row([namespace, template, step, if found { "yes" } else { "MISSING" }.to_owned()]);
            }
            table.print();
        }
    }
    Ok(if missing == 0 { Answer::Yes } else { Answer::No })
}
