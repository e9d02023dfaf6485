//! Templates that workers registered.

use uuid::Uuid;

use super::Store;
use crate::Error;
use crate::template::Template;

impl Store {
    /// Keeps a template; one task may have had it before.
    ///
    /// # Errors
    /// When nothing was written.
    pub(crate) async fn register(
        &self,
        template_id: Uuid,
        template: &Template,
        at: i64,
    ) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO templates (template_id, namespace, name, version, definition, created_at, registered_at)
             VALUES (?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (template_id) DO UPDATE SET registered_at = excluded.registered_at",
        )
        .bind(template_id.to_string())
        .bind(&template.namespace)
        .bind(&template.name)
        .bind(&template.version)
        .bind(template.to_json())
        .bind(at)
        .bind(at)
        .execute(&self.writer)
        .await
        .map(drop)
        .map_err(|error| self.problem(&error))
    }

    /// Every registered template.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn registered(&self) -> Result<Vec<Template>, Error> {
        let definitions: Vec<String> =
            sqlx::query_scalar("SELECT definition FROM templates WHERE registered_at IS NOT NULL")
                .fetch_all(&self.readers)
                .await
                .map_err(|error| self.problem(&error))?;
        let read = |definition: &String| {
            serde_json::from_str(definition).map_err(|error| Error::Store {
                store: self.name().to_owned(),
                problem: format!("holds a registered template that cannot be read: {error}"),
            })
        };
        definitions.iter().map(read).collect()
    }
}
