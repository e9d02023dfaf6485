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
        /// For the terminal, for Markdown, for Graphviz, or for a browser.
        #[arg(long, value_enum, default_value_t = Format::Ascii)]
        format: Format,
    },
    /// Write a template of any accepted format in the current one; what has no effect is told on stderr.
    ///
    /// Of its comments those at the head of the file are kept, and no others. `${VAR}` stays as it stands in texts; where
    /// a number is wanted, put the number there first.
    Convert {
        /// The YAML file.
        file: PathBuf,
    },
    /// Print the JSON Schema of the current format, for editors.
    Schema,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Format {
    Ascii,
    Mermaid,
    Dot,
    Svg,
}

impl Command {
    pub(super) fn run(&self, output: Output) -> Result<Answer, Error> {
        match self {
            Self::Validate { directory } => return validate(directory, output),
            Self::Graph { file, format } => {
                let draw = match format {
                    Format::Ascii => graph::graph_ascii,
                    Format::Mermaid => graph::graph_mermaid,
                    Format::Dot => graph::graph_dot,
                    Format::Svg => graph::graph_svg,
                };
                let catalog = Catalog::load(file, environment().as_deref())?;
                catalog.all().iter().for_each(|template| print!("{}", draw(template)));
            }
            Self::Convert { file } => convert(file)?,
            Self::Schema => output::json(&template::format_schema()),
        }
        Ok(Answer::Yes)
    }
}

fn validate(path: &Path, output: Output) -> Result<Answer, Error> {
    let catalog = Catalog::load(path, environment().as_deref())?;
    let (templates, warnings) = (catalog.all(), catalog.warnings());
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
        output::json(&json!({ "templates": rows, "mistakes": [], "warnings": warnings }));
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
    warnings.iter().for_each(|warning| println!("warning: {warning}"));
    Ok(Answer::Yes)
}

fn convert(file: &Path) -> Result<(), Error> {
    let text =
        std::fs::read_to_string(file).map_err(|source| Error::File { path: file.to_owned(), source })?;
    let place = |mistake: template::Mistake| mistake.at(file.display());
    let converted = template::convert(&text)
        .map_err(|mistakes| Error::Templates(mistakes.into_iter().map(place).collect()))?;
    converted.warnings.into_iter().for_each(|warning| eprintln!("warning: {}", place(warning)));
    print!("{}", converted.text);
    Ok(())
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
