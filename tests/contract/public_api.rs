//! What other crates may use of this one is what `docs/public-api.txt` lists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use syn::parse::{Parse, ParseStream};
use syn::{
    Attribute, Block, Expr, Fields, Ident, ImplItem, Item, Meta, Token, TraitItem, Type, Visibility, braced,
    parse_quote, token,
};

/// Where a change shows, in this form: every public item of the sources, without bodies and documentation. An item
/// that is `pub` is exported: the lint `unreachable_pub` sees to that.
#[test]
fn the_public_api_is_the_one_that_is_written_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut items = module(&root.join("src/lib.rs"), &root.join("src"));
    let mut public = BTreeSet::new();
    names(&items, &mut public);
    keep_implementations(&mut items, &public);
    let now =
        prettyplease::unparse(&syn::File { shebang: None, frontmatter: None, attrs: Vec::new(), items });

    let written = fs::read_to_string(root.join("docs/public-api.txt")).unwrap_or_default();
    if now != written {
        let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join("public-api.txt");
        fs::write(&new, &now).unwrap();
        let old: BTreeSet<&str> = written.lines().collect();
        let lines: BTreeSet<&str> = now.lines().collect();
        panic!(
            "the public API has changed.\nno more: {:#?}\nnew: {:#?}\nIf that is meant, say so in CHANGELOG.md, and: cp {} docs/public-api.txt",
            old.difference(&lines).collect::<Vec<_>>(),
            lines.difference(&old).collect::<Vec<_>>(),
            new.display()
        );
    }
    assert!(
        now.lines().count() > 1_000 && now.contains("pub fn blocking_step") && now.contains("pub jwks_file"),
        "the sources were not understood"
    );
}

/// The public items of a module, those of its modules within them.
fn module(file: &Path, folder: &Path) -> Vec<Item> {
    let text = fs::read_to_string(file).unwrap();
    let items = syn::parse_file(&text).unwrap().items;
    items.into_iter().flat_map(made).flat_map(|item| seen(item, folder)).collect()
}

/// The item, or what the macro makes that it calls.
fn made(item: Item) -> Vec<Item> {
    match item {
        Item::Macro(call) if call.mac.path.is_ident("settings") && call.ident.is_none() => {
            call.mac.parse_body::<Settings>().expect("the settings are written as their macro wants them").0
        }
        other => vec![other],
    }
}

/// The structs of `settings!`, each with its default.
struct Settings(Vec<Item>);

impl Parse for Settings {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut items = Vec::new();
        while !input.is_empty() {
            input.call(Attribute::parse_outer)?;
            let name: Ident = input.parse()?;
            let (mut fields, mut types) = (Vec::<Ident>::new(), Vec::<Type>::new());
            while input.peek(token::Brace) {
                let lines;
                braced!(lines in input);
                while !lines.is_empty() {
                    lines.call(Attribute::parse_outer)?;
                    fields.push(lines.parse()?);
                    lines.parse::<Token![:]>()?;
                    types.push(lines.parse()?);
                    if lines.parse::<Option<Token![=]>>()?.is_some() {
                        let _default: Expr = lines.parse()?;
                        lines.parse::<Token![,]>()?;
                        let _rule: Expr = lines.parse()?;
                    }
                    lines.parse::<Token![;]>()?;
                }
            }
            items.push(parse_quote! {
                #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
                pub struct #name { #(pub #fields: #types,)* }
            });
            items.push(parse_quote!(impl Default for #name {}));
        }
        Ok(Self(items))
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// The item as others see it. What a private module has is exported by the module it is in.
fn seen(item: Item, folder: &Path) -> Vec<Item> {
    match public(item, folder) {
        Some(Item::Mod(item)) if !is_public(&item.vis) => item.content.unwrap().1,
        other => other.into_iter().collect(),
    }
}

/// `None` for what others do not see.
fn public(mut item: Item, folder: &Path) -> Option<Item> {
    let (attributes, visible) = match &mut item {
        Item::Const(item) => (&mut item.attrs, is_public(&item.vis)),
        Item::Enum(item) => {
            for variant in &mut item.variants {
                told(&mut variant.attrs);
                variant.fields.iter_mut().for_each(|field| told(&mut field.attrs));
            }
            (&mut item.attrs, is_public(&item.vis))
        }
        Item::Fn(item) => {
            *item.block = nothing();
            (&mut item.attrs, is_public(&item.vis))
        }
        Item::Impl(item) => {
            let trait_items = item.trait_.is_some();
            item.items.retain(|item| !trait_items && is_visible(item));
            item.items.iter_mut().for_each(without_body);
            (&mut item.attrs, trait_items || !item.items.is_empty())
        }
        Item::Mod(item) => {
            let name = item.ident.to_string();
            let file = folder.join(format!("{name}.rs"));
            let inside = match &item.content {
                None if file.exists() => module(&file, &folder.join(&name)),
                None => module(&folder.join(&name).join("mod.rs"), &folder.join(&name)),
                Some((_, items)) => items.iter().flat_map(|item| seen(item.clone(), folder)).collect(),
            };
            let test_module =
                name == "tests" && item.attrs.iter().any(|attribute| attribute.path().is_ident("cfg"));
            let shown = !inside.is_empty() && !test_module;
            item.content = Some((Default::default(), inside));
            item.semi = None;
            (&mut item.attrs, shown)
        }
        Item::Static(item) => (&mut item.attrs, is_public(&item.vis)),
        Item::Struct(item) => {
            if let Fields::Named(fields) = &mut item.fields {
                fields.named =
                    fields.named.clone().into_iter().filter(|field| is_public(&field.vis)).collect();
            }
            for field in &mut item.fields {
                told(&mut field.attrs);
                if !is_public(&field.vis) {
                    field.ty = syn::Type::Infer(syn::TypeInfer {
                        attrs: Vec::new(),
                        underscore_token: Default::default(),
                    });
                }
            }
            (&mut item.attrs, is_public(&item.vis))
        }
        Item::Trait(item) => {
            for item in &mut item.items {
                if let TraitItem::Fn(function) = item {
                    told(&mut function.attrs);
                    function.default = function.default.is_some().then(nothing);
                }
            }
            (&mut item.attrs, is_public(&item.vis))
        }
        Item::Type(item) => (&mut item.attrs, is_public(&item.vis)),
        Item::Use(item) => (&mut item.attrs, is_public(&item.vis)),
        _ => return None,
    };
    told(attributes);
    visible.then_some(item)
}

/// Leaves the attributes that users notice.
fn told(attributes: &mut Vec<Attribute>) {
    let noticed = ["derive", "non_exhaustive", "must_use", "cfg"];
    attributes.retain(|attribute| {
        let cfg_of_tests = matches!(&attribute.meta, Meta::List(list) if list.tokens.to_string() == "test");
        !cfg_of_tests && noticed.iter().any(|name| attribute.path().is_ident(name))
    });
}

fn is_visible(item: &ImplItem) -> bool {
    match item {
        ImplItem::Fn(item) => is_public(&item.vis),
        ImplItem::Const(item) => is_public(&item.vis),
        _ => false,
    }
}

fn without_body(item: &mut ImplItem) {
    if let ImplItem::Fn(function) = item {
        told(&mut function.attrs);
        function.block = nothing();
    } else if let ImplItem::Const(constant) = item {
        told(&mut constant.attrs);
    }
}

fn nothing() -> Block {
    Block { brace_token: Default::default(), stmts: Vec::new() }
}

/// The names of public types.
fn names(items: &[Item], found: &mut BTreeSet<String>) {
    for item in items {
        match item {
            Item::Enum(item) => drop(found.insert(item.ident.to_string())),
            Item::Struct(item) => drop(found.insert(item.ident.to_string())),
            Item::Mod(item) => names(&item.content.as_ref().unwrap().1, found),
            _ => {}
        }
    }
}

/// Leaves out what is implemented for types that nobody sees, and modules that are empty then.
fn keep_implementations(items: &mut Vec<Item>, public: &BTreeSet<String>) {
    items.retain_mut(|item| match item {
        Item::Impl(item) => match &*item.self_ty {
            syn::Type::Path(path) => public.contains(&path.path.segments.last().unwrap().ident.to_string()),
            _ => false,
        },
        Item::Mod(item) => {
            let inside = &mut item.content.as_mut().unwrap().1;
            keep_implementations(inside, public);
            !inside.is_empty()
        }
        _ => true,
    });
}
