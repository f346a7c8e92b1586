-- The rules that keys and checks cannot express, for SQLite. Statements are separated by empty lines.
-- A migration that changes a rule brings a whole new set under its own number; this one stays as it was released.

CREATE TRIGGER adapters_never_change BEFORE UPDATE OF id, base_id, domain_id, role, kind, version, digest, rank, alpha, target_modules, tensors, bytes, metrics, tags, note, context, created_at, created_by ON adapters
BEGIN
    SELECT RAISE(ABORT, 'an adapter version never changes');
END

CREATE TRIGGER adapter_tags_never_change BEFORE UPDATE ON adapter_tags
BEGIN
    SELECT RAISE(ABORT, 'an adapter version never changes');
END

CREATE TRIGGER adapter_metrics_never_change BEFORE UPDATE ON adapter_metrics
BEGIN
    SELECT RAISE(ABORT, 'an adapter version never changes');
END

CREATE TRIGGER aliases_never_change BEFORE UPDATE OF base_id, domain_id, name, created_at, created_by ON aliases
BEGIN
    SELECT RAISE(ABORT, 'an alias keeps its name and place');
END

CREATE TRIGGER builds_never_change BEFORE UPDATE OF id, base_id, domain_id, kind, key, recipe, inputs, created_at, created_by ON builds
BEGIN
    SELECT RAISE(ABORT, 'what a build was asked for never changes');
END

CREATE TRIGGER build_inputs_never_change BEFORE UPDATE ON build_inputs
BEGIN
    SELECT RAISE(ABORT, 'what went into a build never changes');
END

CREATE TRIGGER publications_never_change BEFORE UPDATE ON publications
BEGIN
    SELECT RAISE(ABORT, 'a publication never changes');
END

CREATE TRIGGER withdrawals_never_change BEFORE UPDATE ON withdrawals
BEGIN
    SELECT RAISE(ABORT, 'a withdrawal never changes');
END

CREATE TRIGGER events_never_change BEFORE UPDATE ON events
BEGIN
    SELECT RAISE(ABORT, 'events are only appended');
END

CREATE TRIGGER base_models_stay BEFORE DELETE ON base_models
BEGIN
    SELECT RAISE(ABORT, 'a base model is never removed');
END

CREATE TRIGGER domains_stay BEFORE DELETE ON domains
BEGIN
    SELECT RAISE(ABORT, 'a domain is never removed');
END

CREATE TRIGGER adapters_stay BEFORE DELETE ON adapters
BEGIN
    SELECT RAISE(ABORT, 'an adapter version is never removed');
END

CREATE TRIGGER adapter_words_stay BEFORE DELETE ON adapter_words
BEGIN
    SELECT RAISE(ABORT, 'an adapter version never changes');
END

CREATE TRIGGER builds_stay BEFORE DELETE ON builds
BEGIN
    SELECT RAISE(ABORT, 'a build is never removed');
END

CREATE TRIGGER build_inputs_stay BEFORE DELETE ON build_inputs
BEGIN
    SELECT RAISE(ABORT, 'what went into a build never changes');
END

CREATE TRIGGER publications_stay BEFORE DELETE ON publications
BEGIN
    SELECT RAISE(ABORT, 'a publication is never removed');
END

CREATE TRIGGER withdrawals_stay BEFORE DELETE ON withdrawals
BEGIN
    SELECT RAISE(ABORT, 'a withdrawal is never removed');
END

CREATE TRIGGER events_stay BEFORE DELETE ON events
BEGIN
    SELECT RAISE(ABORT, 'events are only appended');
END

CREATE TRIGGER base_models_not_replaced BEFORE INSERT ON base_models
WHEN EXISTS (SELECT 1 FROM base_models WHERE id = NEW.id)
    OR EXISTS (SELECT 1 FROM base_models WHERE name = NEW.name)
BEGIN
    SELECT RAISE(ABORT, 'base_models: a row is never replaced by another');
END

CREATE TRIGGER domains_not_replaced BEFORE INSERT ON domains
WHEN EXISTS (SELECT 1 FROM domains WHERE id = NEW.id)
    OR EXISTS (SELECT 1 FROM domains WHERE name = NEW.name)
BEGIN
    SELECT RAISE(ABORT, 'domains: a row is never replaced by another');
END

CREATE TRIGGER builds_not_replaced BEFORE INSERT ON builds
WHEN EXISTS (SELECT 1 FROM builds WHERE id = NEW.id)
    OR EXISTS (SELECT 1 FROM builds WHERE key = NEW.key AND status IN ('queued', 'running'))
BEGIN
    SELECT RAISE(ABORT, 'builds: a row is never replaced by another');
END

CREATE TRIGGER publications_not_replaced BEFORE INSERT ON publications
WHEN EXISTS (SELECT 1 FROM publications WHERE id = NEW.id)
BEGIN
    SELECT RAISE(ABORT, 'publications: a row is never replaced by another');
END

CREATE TRIGGER withdrawals_not_replaced BEFORE INSERT ON withdrawals
WHEN EXISTS (SELECT 1 FROM withdrawals WHERE publication_id = NEW.publication_id)
BEGIN
    SELECT RAISE(ABORT, 'withdrawals: a row is never replaced by another');
END

CREATE TRIGGER events_not_replaced BEFORE INSERT ON events
WHEN EXISTS (SELECT 1 FROM events WHERE id = NEW.id)
BEGIN
    SELECT RAISE(ABORT, 'events: a row is never replaced by another');
END

CREATE TRIGGER build_inputs_not_replaced BEFORE INSERT ON build_inputs
WHEN EXISTS (SELECT 1 FROM build_inputs WHERE build_id = NEW.build_id AND adapter_id = NEW.adapter_id)
BEGIN
    SELECT RAISE(ABORT, 'build_inputs: a row is never replaced by another');
END

CREATE TRIGGER adapters_keep_their_id BEFORE UPDATE ON adapters
WHEN OLD.id IS NOT NEW.id
BEGIN
    SELECT RAISE(ABORT, 'an adapter version never changes');
END

CREATE TRIGGER domains_keep_their_id BEFORE UPDATE ON domains
WHEN OLD.id IS NOT NEW.id
BEGIN
    SELECT RAISE(ABORT, 'a domain keeps its name and role');
END

CREATE TRIGGER adapters_current_not_replaced BEFORE UPDATE OF is_current ON adapters
WHEN NEW.is_current AND EXISTS (
        SELECT 1 FROM adapters WHERE base_id = NEW.base_id AND is_current AND id <> NEW.id
    )
BEGIN
    SELECT RAISE(ABORT, 'adapters: another spirit is current');
END

CREATE TRIGGER adapters_begin_not_current BEFORE INSERT ON adapters
WHEN NEW.is_current
BEGIN
    SELECT RAISE(ABORT, 'a version becomes current after it is registered');
END

CREATE TRIGGER adapter_words_not_replaced BEFORE INSERT ON adapter_words
WHEN EXISTS (SELECT 1 FROM adapter_words WHERE adapter_id = NEW.adapter_id)
BEGIN
    SELECT RAISE(ABORT, 'an adapter version never changes');
END

CREATE TRIGGER aliases_not_replaced BEFORE INSERT ON aliases
WHEN EXISTS (
        SELECT 1 FROM aliases WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND name = NEW.name
    )
BEGIN
    SELECT RAISE(ABORT, 'aliases: a row is never replaced by another');
END

CREATE TRIGGER aliases_stay_with_their_versions BEFORE INSERT ON aliases
WHEN NOT EXISTS (
        SELECT 1 FROM adapters
        WHERE id = NEW.adapter_id AND base_id = NEW.base_id AND domain_id = NEW.domain_id
    )
BEGIN
    SELECT RAISE(ABORT, 'an alias is on a version of its own base and domain');
END

CREATE TRIGGER adapters_not_replaced BEFORE INSERT ON adapters
WHEN EXISTS (SELECT 1 FROM adapters WHERE id = NEW.id)
    OR EXISTS (
        SELECT 1 FROM adapters
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND digest = NEW.digest
    )
BEGIN
    SELECT RAISE(ABORT, 'adapters: a row is never replaced by another');
END

CREATE TRIGGER adapters_numbered BEFORE INSERT ON adapters
WHEN NEW.version <> 1 + (
        SELECT coalesce(max(version), 0) FROM adapters
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id
    )
BEGIN
    SELECT RAISE(ABORT, 'versions are numbered 1, 2, 3 and so on, without gaps');
END

CREATE TRIGGER adapters_begin_active BEFORE INSERT ON adapters
WHEN NEW.archived_at IS NOT NULL
BEGIN
    SELECT RAISE(ABORT, 'a version is archived and restored by an event, which says when');
END

CREATE TRIGGER adapters_archived_by_event BEFORE UPDATE OF archived_at ON adapters
WHEN NEW.archived_at IS NOT (
        SELECT CASE kind WHEN 'adapter.archived' THEN created_at END FROM events
        WHERE adapter_id = NEW.id AND kind IN ('adapter.archived', 'adapter.restored')
        ORDER BY id DESC LIMIT 1
    )
BEGIN
    SELECT RAISE(ABORT, 'a version is archived and restored by an event, which says when');
END

CREATE TRIGGER adapters_searchable AFTER INSERT ON adapters
BEGIN
    INSERT INTO adapter_tags (tag, adapter_id) SELECT DISTINCT value, NEW.id FROM json_each(NEW.tags);
    INSERT INTO adapter_metrics (name, adapter_id, value) SELECT key, NEW.id, value FROM json_each(NEW.metrics);
END

CREATE TRIGGER aliases_set_by_event BEFORE INSERT ON aliases
WHEN NOT EXISTS (
        SELECT 1 FROM events
        WHERE id = NEW.event_id AND base_id = NEW.base_id AND domain_id = NEW.domain_id AND alias = NEW.name
            AND adapter_id = NEW.adapter_id
    )
    OR EXISTS (
        SELECT 1 FROM events
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND alias = NEW.name AND id > NEW.event_id
    )
BEGIN
    SELECT RAISE(ABORT, 'an alias is moved by an event, and is where its newest event says');
END

CREATE TRIGGER aliases_set_on_active BEFORE INSERT ON aliases
WHEN EXISTS (SELECT 1 FROM adapters WHERE id = NEW.adapter_id AND archived_at IS NOT NULL)
BEGIN
    SELECT RAISE(ABORT, 'an archived version takes no alias');
END

CREATE TRIGGER aliases_moved_by_event BEFORE UPDATE ON aliases
WHEN NOT EXISTS (
        SELECT 1 FROM events
        WHERE id = NEW.event_id AND base_id = NEW.base_id AND domain_id = NEW.domain_id AND alias = NEW.name
            AND adapter_id = NEW.adapter_id
    )
    OR EXISTS (
        SELECT 1 FROM events
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND alias = NEW.name AND id > NEW.event_id
    )
BEGIN
    SELECT RAISE(ABORT, 'an alias is moved by an event, and is where its newest event says');
END

CREATE TRIGGER aliases_moved_on_active BEFORE UPDATE ON aliases
WHEN EXISTS (SELECT 1 FROM adapters WHERE id = NEW.adapter_id AND archived_at IS NOT NULL)
BEGIN
    SELECT RAISE(ABORT, 'an archived version takes no alias');
END

CREATE TRIGGER aliases_removed_by_event BEFORE DELETE ON aliases
WHEN (
        SELECT adapter_id FROM events
        WHERE base_id = OLD.base_id AND domain_id = OLD.domain_id AND alias = OLD.name
        ORDER BY id DESC LIMIT 1
    ) IS NOT NULL
BEGIN
    SELECT RAISE(ABORT, 'an alias is moved by an event, and is where its newest event says');
END

CREATE TRIGGER builds_begin_queued BEFORE INSERT ON builds
WHEN NEW.status <> 'queued'
BEGIN
    SELECT RAISE(ABORT, 'a build begins as queued');
END

CREATE TRIGGER builds_begin_by_event BEFORE INSERT ON builds
WHEN coalesce((
        SELECT kind FROM events WHERE subject = NEW.id AND kind IN ('build.queued', 'build.running', 'build.succeeded', 'build.failed', 'build.cancelled')
        ORDER BY id DESC LIMIT 1
    ), '') <> 'build.' || NEW.status
BEGIN
    SELECT RAISE(ABORT, 'a build changes its status by an event, which comes first');
END

CREATE TRIGGER builds_move_by_event BEFORE UPDATE OF status ON builds
WHEN NEW.status <> OLD.status AND coalesce((
        SELECT kind FROM events WHERE subject = NEW.id AND kind IN ('build.queued', 'build.running', 'build.succeeded', 'build.failed', 'build.cancelled')
        ORDER BY id DESC LIMIT 1
    ), '') <> 'build.' || NEW.status
BEGIN
    SELECT RAISE(ABORT, 'a build changes its status by an event, which comes first');
END

CREATE TRIGGER builds_move_lawfully BEFORE UPDATE OF status ON builds
WHEN NEW.status <> OLD.status
    AND OLD.status || '>' || NEW.status NOT IN ('queued>running', 'queued>failed', 'queued>cancelled', 'running>queued', 'running>succeeded', 'running>failed', 'running>cancelled', 'failed>queued', 'cancelled>queued')
BEGIN
    SELECT RAISE(ABORT, 'a build cannot change to that status from the one it has');
END

CREATE TRIGGER builds_results_stay BEFORE UPDATE OF digest, coefficients, report, error, worker, started_at, finished_at ON builds
WHEN OLD.status = 'succeeded'
BEGIN
    SELECT RAISE(ABORT, 'the result of a build that has succeeded never changes');
END

CREATE TRIGGER events_in_order BEFORE INSERT ON events
WHEN NEW.alias IS NOT NULL AND NEW.created_at < (
        SELECT created_at FROM events
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND alias = NEW.alias
        ORDER BY id DESC LIMIT 1
    )
    OR NEW.adapter_id IS NOT NULL AND NEW.created_at < (
        SELECT created_at FROM events WHERE adapter_id = NEW.adapter_id ORDER BY id DESC LIMIT 1
    )
    OR NEW.id > 0 AND NEW.id <> 1 + (SELECT coalesce(max(id), 0) FROM events)
BEGIN
    SELECT RAISE(ABORT, 'events are appended in the order of their time');
END

CREATE TRIGGER events_about_what_is_there BEFORE INSERT ON events
WHEN NEW.adapter_id IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM adapters
        WHERE id = NEW.adapter_id AND base_id = NEW.base_id AND domain_id = NEW.domain_id
    )
BEGIN
    SELECT RAISE(ABORT, 'an event is about a version of its own base and domain');
END

CREATE TRIGGER events_move_aliases AFTER INSERT ON events
WHEN NEW.alias IS NOT NULL
BEGIN
    DELETE FROM aliases
    WHERE NEW.adapter_id IS NULL
        AND base_id = NEW.base_id AND domain_id = NEW.domain_id AND name = NEW.alias;
    UPDATE aliases SET adapter_id = NEW.adapter_id, event_id = NEW.id
    WHERE NEW.adapter_id IS NOT NULL
        AND base_id = NEW.base_id AND domain_id = NEW.domain_id AND name = NEW.alias;
    INSERT INTO aliases (base_id, domain_id, name, adapter_id, event_id, created_at, created_by)
    SELECT NEW.base_id, NEW.domain_id, NEW.alias, NEW.adapter_id, NEW.id, NEW.created_at, NEW.created_by
    WHERE NEW.adapter_id IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM aliases
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND name = NEW.alias
    );
END

CREATE TRIGGER events_archive_versions AFTER INSERT ON events
WHEN NEW.kind IN ('adapter.archived', 'adapter.restored')
BEGIN
    UPDATE adapters
    SET is_current = is_current AND NEW.kind = 'adapter.restored',
        archived_at = CASE NEW.kind WHEN 'adapter.archived' THEN NEW.created_at END
    WHERE id = NEW.adapter_id;
END

CREATE TRIGGER builds_stay_own BEFORE UPDATE OF own_recipe ON builds
WHEN OLD.own_recipe = 1 AND NEW.own_recipe IS NOT 1
BEGIN
    SELECT RAISE(ABORT, 'a build by the own recipe of its domain stays one');
END

CREATE TRIGGER evaluations_never_change BEFORE UPDATE ON evaluations
BEGIN
    SELECT RAISE(ABORT, 'an evaluation never changes');
END

CREATE TRIGGER evaluations_stay BEFORE DELETE ON evaluations
BEGIN
    SELECT RAISE(ABORT, 'an evaluation is never removed');
END

CREATE TRIGGER evaluations_not_replaced BEFORE INSERT ON evaluations
WHEN EXISTS (SELECT 1 FROM evaluations WHERE id = NEW.id)
    OR EXISTS (SELECT 1 FROM evaluations WHERE key = NEW.key)
BEGIN
    SELECT RAISE(ABORT, 'evaluations: a row is never replaced by another');
END

CREATE TRIGGER evaluations_searchable AFTER INSERT ON evaluations
BEGIN
    INSERT INTO evaluation_metrics (name, evaluation_id, value)
    SELECT key, NEW.id, json_extract(value, '$.mean') FROM json_each(NEW.metrics);
END

CREATE TRIGGER evaluation_metrics_never_change BEFORE UPDATE ON evaluation_metrics
BEGIN
    SELECT RAISE(ABORT, 'an evaluation never changes');
END

CREATE TRIGGER evaluation_metrics_stay BEFORE DELETE ON evaluation_metrics
BEGIN
    SELECT RAISE(ABORT, 'an evaluation never changes');
END

CREATE TRIGGER evaluation_metrics_as_measured BEFORE INSERT ON evaluation_metrics
WHEN NOT EXISTS (
        SELECT 1 FROM evaluations, json_each(evaluations.metrics) AS found
        WHERE evaluations.id = NEW.evaluation_id AND found.key = NEW.name
            AND json_extract(found.value, '$.mean') = NEW.value
    )
BEGIN
    SELECT RAISE(ABORT, 'an evaluation never changes');
END

CREATE TRIGGER recipes_never_change BEFORE UPDATE ON recipes
BEGIN
    SELECT RAISE(ABORT, 'a recipe keeps its name and kind');
END

CREATE TRIGGER recipes_stay BEFORE DELETE ON recipes
BEGIN
    SELECT RAISE(ABORT, 'a recipe is never removed');
END

CREATE TRIGGER recipes_not_replaced BEFORE INSERT ON recipes
WHEN EXISTS (SELECT 1 FROM recipes WHERE id = NEW.id)
    OR EXISTS (SELECT 1 FROM recipes WHERE kind = NEW.kind AND name = NEW.name)
BEGIN
    SELECT RAISE(ABORT, 'recipes: a row is never replaced by another');
END

CREATE TRIGGER recipe_versions_never_change BEFORE UPDATE ON recipe_versions
BEGIN
    SELECT RAISE(ABORT, 'a version of a recipe never changes');
END

CREATE TRIGGER recipe_versions_stay BEFORE DELETE ON recipe_versions
BEGIN
    SELECT RAISE(ABORT, 'a version of a recipe is never removed');
END

CREATE TRIGGER recipe_versions_not_replaced BEFORE INSERT ON recipe_versions
WHEN EXISTS (SELECT 1 FROM recipe_versions WHERE id = NEW.id)
    OR EXISTS (SELECT 1 FROM recipe_versions WHERE recipe_id = NEW.recipe_id AND digest = NEW.digest)
BEGIN
    SELECT RAISE(ABORT, 'recipe_versions: a row is never replaced by another');
END

CREATE TRIGGER recipe_versions_numbered BEFORE INSERT ON recipe_versions
WHEN NEW.version <> 1 + (SELECT coalesce(max(version), 0) FROM recipe_versions WHERE recipe_id = NEW.recipe_id)
BEGIN
    SELECT RAISE(ABORT, 'versions of a recipe are numbered 1, 2, 3 and so on, without gaps');
END

CREATE TRIGGER recipe_versions_by_event BEFORE INSERT ON recipe_versions
WHEN NOT EXISTS (
        SELECT 1 FROM recipes JOIN events
            ON events.subject = recipes.name || '@v' || NEW.version AND events.kind = recipes.kind || '.added'
        WHERE recipes.id = NEW.recipe_id
    )
BEGIN
    SELECT RAISE(ABORT, 'a version of a recipe is added by an event, which comes first');
END

CREATE TRIGGER domains_begin_with_a_recipe_that_is_kept BEFORE INSERT ON domains
WHEN (instr(NEW.recipe, '@') OR instr(NEW.recipe, '.') OR instr(NEW.recipe, '/') OR instr(NEW.recipe, '\')) AND NOT EXISTS (
        SELECT 1 FROM recipes JOIN recipe_versions ON recipe_versions.recipe_id = recipes.id
        WHERE recipes.kind = 'recipe' AND NEW.recipe = recipes.name || '@v' || recipe_versions.version
    )
BEGIN
    SELECT RAISE(ABORT, 'the recipe of a domain is one that ships, or a version of one in the registry');
END

CREATE TRIGGER domains_have_a_recipe_that_is_kept BEFORE UPDATE OF recipe ON domains
WHEN NEW.recipe IS NOT OLD.recipe
    AND (instr(NEW.recipe, '@') OR instr(NEW.recipe, '.') OR instr(NEW.recipe, '/') OR instr(NEW.recipe, '\')) AND NOT EXISTS (
        SELECT 1 FROM recipes JOIN recipe_versions ON recipe_versions.recipe_id = recipes.id
        WHERE recipes.kind = 'recipe' AND NEW.recipe = recipes.name || '@v' || recipe_versions.version
    )
BEGIN
    SELECT RAISE(ABORT, 'the recipe of a domain is one that ships, or a version of one in the registry');
END

CREATE TRIGGER base_models_never_change BEFORE UPDATE OF id, source, revision, digest, architecture, dtype, parameters, bytes, created_at, created_by ON base_models
BEGIN
    SELECT RAISE(ABORT, 'a base model never changes');
END

CREATE TRIGGER base_models_keep_their_id BEFORE UPDATE ON base_models
WHEN OLD.id IS NOT NEW.id
BEGIN
    SELECT RAISE(ABORT, 'a base model never changes');
END

CREATE TRIGGER base_models_removed_by_event BEFORE UPDATE OF name, removed_at ON base_models
WHEN NOT (
        NEW.name = OLD.name AND NEW.removed_at IS OLD.removed_at
        OR OLD.removed_at IS NULL AND NEW.name = OLD.name || ' (removed ' || NEW.id || ')'
            AND NEW.removed_at IS (
                SELECT created_at FROM events
                WHERE base_id = NEW.id AND domain_id IS NULL AND kind = 'base.removed' ORDER BY id DESC LIMIT 1
            ) AND NEW.removed_at IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM adapters WHERE base_id = NEW.id)
            AND NOT EXISTS (SELECT 1 FROM builds WHERE base_id = NEW.id)
    )
BEGIN
    SELECT RAISE(ABORT, 'a base model is removed by an event, and only where nothing refers to it');
END

CREATE TRIGGER domains_never_change BEFORE UPDATE OF id, role, created_at, created_by ON domains
BEGIN
    SELECT RAISE(ABORT, 'a domain keeps its name and role');
END

CREATE TRIGGER domains_named_by_event BEFORE UPDATE OF name, removed_at ON domains
WHEN NOT (
        NEW.name = OLD.name AND NEW.removed_at IS OLD.removed_at
        OR OLD.removed_at IS NULL AND NEW.removed_at IS NULL AND NEW.name IS (
                SELECT CASE kind WHEN 'domain.renamed' THEN json_extract(detail, '$.to') END FROM events
                WHERE domain_id = NEW.id AND kind IN ('domain.renamed', 'domain.removed') ORDER BY id DESC LIMIT 1
            )
            AND NOT EXISTS (SELECT 1 FROM builds WHERE domain_id = NEW.id)
            AND NOT EXISTS (
                SELECT 1 FROM build_inputs JOIN adapters ON adapters.id = build_inputs.adapter_id
                WHERE adapters.domain_id = NEW.id
            )
        OR OLD.removed_at IS NULL AND NEW.name = OLD.name || ' (removed ' || NEW.id || ')'
            AND NEW.removed_at IS (
                SELECT created_at FROM events
                WHERE domain_id = NEW.id AND kind = 'domain.removed' ORDER BY id DESC LIMIT 1
            ) AND NEW.removed_at IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM adapters WHERE domain_id = NEW.id)
            AND NOT EXISTS (SELECT 1 FROM builds WHERE domain_id = NEW.id)
            AND NOT EXISTS (SELECT 1 FROM evaluations WHERE domain_id = NEW.id)
    )
BEGIN
    SELECT RAISE(ABORT, 'a domain is renamed or removed by an event, and only where nothing refers to it');
END

CREATE TRIGGER domains_searchable AFTER UPDATE OF name ON domains
WHEN NEW.name <> OLD.name
BEGIN
    UPDATE adapter_words SET words = NEW.name || substr(words, instr(words, ' '))
    WHERE adapter_id IN (SELECT id FROM adapters WHERE domain_id = NEW.id);
END

CREATE TRIGGER adapters_of_what_is_there BEFORE INSERT ON adapters
WHEN EXISTS (SELECT 1 FROM domains WHERE id = NEW.domain_id AND removed_at IS NOT NULL)
    OR EXISTS (SELECT 1 FROM base_models WHERE id = NEW.base_id AND removed_at IS NOT NULL)
BEGIN
    SELECT RAISE(ABORT, 'a removed domain or base model takes nothing new');
END

CREATE TRIGGER builds_of_what_is_there BEFORE INSERT ON builds
WHEN EXISTS (SELECT 1 FROM domains WHERE id = NEW.domain_id AND removed_at IS NOT NULL)
    OR EXISTS (SELECT 1 FROM base_models WHERE id = NEW.base_id AND removed_at IS NOT NULL)
BEGIN
    SELECT RAISE(ABORT, 'a removed domain or base model takes nothing new');
END

CREATE TRIGGER evaluations_of_what_is_there BEFORE INSERT ON evaluations
WHEN EXISTS (SELECT 1 FROM domains WHERE id = NEW.domain_id AND removed_at IS NOT NULL)
BEGIN
    SELECT RAISE(ABORT, 'a removed domain or base model takes nothing new');
END

CREATE TRIGGER domains_begin_present BEFORE INSERT ON domains
WHEN NEW.removed_at IS NOT NULL OR NEW.name LIKE '% (removed %'
BEGIN
    SELECT RAISE(ABORT, 'a domain is renamed or removed by an event, and only where nothing refers to it');
END

CREATE TRIGGER base_models_begin_present BEFORE INSERT ON base_models
WHEN NEW.removed_at IS NOT NULL OR NEW.name LIKE '% (removed %'
BEGIN
    SELECT RAISE(ABORT, 'a base model is removed by an event, and only where nothing refers to it');
END

CREATE TRIGGER adapters_content_once BEFORE UPDATE OF content ON adapters
WHEN OLD.content IS NOT NULL AND NEW.content IS NOT OLD.content
BEGIN
    SELECT RAISE(ABORT, 'the digest of a version''s content is set once');
END

CREATE TRIGGER adapters_content_not_twice BEFORE INSERT ON adapters
WHEN NEW.content IS NOT NULL AND EXISTS (
        SELECT 1 FROM adapters
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND content = NEW.content
    )
BEGIN
    SELECT RAISE(ABORT, 'adapters: this content is another version of the same domain already');
END

CREATE TRIGGER adapter_tags_follow BEFORE INSERT ON adapter_tags
WHEN NOT EXISTS (
        SELECT 1 FROM json_each(coalesce(
            (SELECT tags FROM annotations WHERE adapter_id = NEW.adapter_id),
            (SELECT tags FROM adapters WHERE id = NEW.adapter_id)
        )) AS given WHERE given.value = NEW.tag
    )
BEGIN
    SELECT RAISE(ABORT, 'what search looks in follows the metadata');
END

CREATE TRIGGER adapter_tags_stay BEFORE DELETE ON adapter_tags
WHEN EXISTS (
        SELECT 1 FROM json_each(coalesce(
            (SELECT tags FROM annotations WHERE adapter_id = OLD.adapter_id),
            (SELECT tags FROM adapters WHERE id = OLD.adapter_id)
        )) AS given WHERE given.value = OLD.tag
    )
BEGIN
    SELECT RAISE(ABORT, 'what search looks in follows the metadata');
END

CREATE TRIGGER adapter_metrics_follow BEFORE INSERT ON adapter_metrics
WHEN NOT EXISTS (
        SELECT 1 FROM json_each(coalesce(
            (SELECT metrics FROM annotations WHERE adapter_id = NEW.adapter_id),
            (SELECT metrics FROM adapters WHERE id = NEW.adapter_id)
        )) AS given WHERE given.key = NEW.name AND given.value = NEW.value
    )
BEGIN
    SELECT RAISE(ABORT, 'what search looks in follows the metadata');
END

CREATE TRIGGER adapter_metrics_stay BEFORE DELETE ON adapter_metrics
WHEN EXISTS (
        SELECT 1 FROM json_each(coalesce(
            (SELECT metrics FROM annotations WHERE adapter_id = OLD.adapter_id),
            (SELECT metrics FROM adapters WHERE id = OLD.adapter_id)
        )) AS given WHERE given.key = OLD.name AND given.value = OLD.value
    )
BEGIN
    SELECT RAISE(ABORT, 'what search looks in follows the metadata');
END

CREATE TRIGGER adapter_words_follow BEFORE UPDATE ON adapter_words
WHEN NEW.adapter_id <> OLD.adapter_id OR NEW.words IS NOT (
        SELECT domains.name FROM adapters JOIN domains ON domains.id = adapters.domain_id
        WHERE adapters.id = NEW.adapter_id
    ) || coalesce(
        (SELECT words FROM annotations WHERE adapter_id = NEW.adapter_id), substr(OLD.words, instr(OLD.words, ' '))
    )
BEGIN
    SELECT RAISE(ABORT, 'what search looks in follows the metadata');
END

CREATE TRIGGER annotations_stay BEFORE DELETE ON annotations
BEGIN
    SELECT RAISE(ABORT, 'metadata stay where they are: an edit changes them');
END

CREATE TRIGGER annotations_never_move BEFORE UPDATE OF id, adapter_id, domain_id, base_id, build_id ON annotations
BEGIN
    SELECT RAISE(ABORT, 'metadata stay where they are: an edit changes them');
END

CREATE TRIGGER annotations_keep_their_id BEFORE UPDATE ON annotations
WHEN OLD.id IS NOT NEW.id
BEGIN
    SELECT RAISE(ABORT, 'metadata stay where they are: an edit changes them');
END

CREATE TRIGGER annotations_not_replaced BEFORE INSERT ON annotations
WHEN EXISTS (SELECT 1 FROM annotations WHERE id = NEW.id)
    OR EXISTS (SELECT 1 FROM annotations WHERE adapter_id = NEW.adapter_id)
    OR EXISTS (SELECT 1 FROM annotations WHERE domain_id = NEW.domain_id)
    OR EXISTS (SELECT 1 FROM annotations WHERE base_id = NEW.base_id)
    OR EXISTS (SELECT 1 FROM annotations WHERE build_id = NEW.build_id)
BEGIN
    SELECT RAISE(ABORT, 'annotations: a row is never replaced by another');
END

CREATE TRIGGER annotations_made_by_event BEFORE INSERT ON annotations
WHEN NEW.event_id IS NOT CASE
        WHEN NEW.adapter_id IS NOT NULL THEN (SELECT id FROM events WHERE adapter_id = NEW.adapter_id AND kind = 'adapter.edited' ORDER BY id DESC LIMIT 1)
        WHEN NEW.domain_id IS NOT NULL THEN (SELECT id FROM events WHERE domain_id = NEW.domain_id AND kind = 'domain.edited' ORDER BY id DESC LIMIT 1)
        WHEN NEW.base_id IS NOT NULL THEN (SELECT id FROM events WHERE base_id = NEW.base_id AND domain_id IS NULL AND kind = 'base.edited' ORDER BY id DESC LIMIT 1)
        ELSE (SELECT id FROM events WHERE subject = NEW.build_id AND kind = 'build.edited' ORDER BY id DESC LIMIT 1)
    END
BEGIN
    SELECT RAISE(ABORT, 'metadata change by an event, and are what their newest event left');
END

CREATE TRIGGER annotations_changed_by_event BEFORE UPDATE ON annotations
WHEN NEW.event_id <= OLD.event_id OR NEW.event_id IS NOT CASE
        WHEN NEW.adapter_id IS NOT NULL THEN (SELECT id FROM events WHERE adapter_id = NEW.adapter_id AND kind = 'adapter.edited' ORDER BY id DESC LIMIT 1)
        WHEN NEW.domain_id IS NOT NULL THEN (SELECT id FROM events WHERE domain_id = NEW.domain_id AND kind = 'domain.edited' ORDER BY id DESC LIMIT 1)
        WHEN NEW.base_id IS NOT NULL THEN (SELECT id FROM events WHERE base_id = NEW.base_id AND domain_id IS NULL AND kind = 'base.edited' ORDER BY id DESC LIMIT 1)
        ELSE (SELECT id FROM events WHERE subject = NEW.build_id AND kind = 'build.edited' ORDER BY id DESC LIMIT 1)
    END
BEGIN
    SELECT RAISE(ABORT, 'metadata change by an event, and are what their newest event left');
END

CREATE TRIGGER annotations_made_searchable AFTER INSERT ON annotations
WHEN NEW.adapter_id IS NOT NULL
BEGIN
    DELETE FROM adapter_tags
    WHERE adapter_id = NEW.adapter_id AND tag IN (SELECT value FROM json_each((SELECT tags FROM adapters WHERE id = NEW.adapter_id)))
        AND tag NOT IN (SELECT value FROM json_each(NEW.tags) WHERE type = 'text');
    INSERT INTO adapter_tags (tag, adapter_id)
    SELECT DISTINCT value, NEW.adapter_id FROM json_each(NEW.tags) AS given
    WHERE given.type = 'text' AND NOT EXISTS (
        SELECT 1 FROM adapter_tags WHERE tag = given.value AND adapter_id = NEW.adapter_id
    );
    DELETE FROM adapter_metrics
    WHERE adapter_id = NEW.adapter_id AND name IN (SELECT key FROM json_each((SELECT metrics FROM adapters WHERE id = NEW.adapter_id)))
        AND NOT EXISTS (
            SELECT 1 FROM json_each(NEW.metrics) AS given
            WHERE given.key = adapter_metrics.name AND given.value = adapter_metrics.value
        );
    INSERT INTO adapter_metrics (name, adapter_id, value)
    SELECT given.key, NEW.adapter_id, given.value FROM json_each(NEW.metrics) AS given
    WHERE given.type IN ('integer', 'real') AND NOT EXISTS (
        SELECT 1 FROM adapter_metrics WHERE name = given.key AND adapter_id = NEW.adapter_id
    );
    UPDATE adapter_words
    SET words = (
        SELECT domains.name FROM adapters JOIN domains ON domains.id = adapters.domain_id
        WHERE adapters.id = NEW.adapter_id
    ) || NEW.words
    WHERE adapter_id = NEW.adapter_id;
END

CREATE TRIGGER annotations_kept_searchable AFTER UPDATE ON annotations
WHEN NEW.adapter_id IS NOT NULL
BEGIN
    DELETE FROM adapter_tags
    WHERE adapter_id = NEW.adapter_id AND tag IN (SELECT value FROM json_each(OLD.tags))
        AND tag NOT IN (SELECT value FROM json_each(NEW.tags) WHERE type = 'text');
    INSERT INTO adapter_tags (tag, adapter_id)
    SELECT DISTINCT value, NEW.adapter_id FROM json_each(NEW.tags) AS given
    WHERE given.type = 'text' AND NOT EXISTS (
        SELECT 1 FROM adapter_tags WHERE tag = given.value AND adapter_id = NEW.adapter_id
    );
    DELETE FROM adapter_metrics
    WHERE adapter_id = NEW.adapter_id AND name IN (SELECT key FROM json_each(OLD.metrics))
        AND NOT EXISTS (
            SELECT 1 FROM json_each(NEW.metrics) AS given
            WHERE given.key = adapter_metrics.name AND given.value = adapter_metrics.value
        );
    INSERT INTO adapter_metrics (name, adapter_id, value)
    SELECT given.key, NEW.adapter_id, given.value FROM json_each(NEW.metrics) AS given
    WHERE given.type IN ('integer', 'real') AND NOT EXISTS (
        SELECT 1 FROM adapter_metrics WHERE name = given.key AND adapter_id = NEW.adapter_id
    );
    UPDATE adapter_words
    SET words = (
        SELECT domains.name FROM adapters JOIN domains ON domains.id = adapters.domain_id
        WHERE adapters.id = NEW.adapter_id
    ) || NEW.words
    WHERE adapter_id = NEW.adapter_id;
END

CREATE TRIGGER build_aliases_never_change BEFORE UPDATE OF base_id, domain_id, name, created_at, created_by ON build_aliases
BEGIN
    SELECT RAISE(ABORT, 'an alias keeps its name and place');
END

CREATE TRIGGER build_aliases_not_replaced BEFORE INSERT ON build_aliases
WHEN EXISTS (
        SELECT 1 FROM build_aliases WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND name = NEW.name
    )
BEGIN
    SELECT RAISE(ABORT, 'build_aliases: a row is never replaced by another');
END

CREATE TRIGGER build_aliases_set_on_succeeded BEFORE INSERT ON build_aliases
WHEN NOT EXISTS (
        SELECT 1 FROM builds
        WHERE id = NEW.build_id AND base_id = NEW.base_id AND domain_id = NEW.domain_id AND status = 'succeeded'
            AND collected_at IS NULL
    )
BEGIN
    SELECT RAISE(ABORT, 'an alias is on a succeeded build of its own base and domain');
END

CREATE TRIGGER build_aliases_moved_on_succeeded BEFORE UPDATE ON build_aliases
WHEN NOT EXISTS (
        SELECT 1 FROM builds
        WHERE id = NEW.build_id AND base_id = NEW.base_id AND domain_id = NEW.domain_id AND status = 'succeeded'
            AND collected_at IS NULL
    )
BEGIN
    SELECT RAISE(ABORT, 'an alias is on a succeeded build of its own base and domain');
END

CREATE TRIGGER build_aliases_set_by_event BEFORE INSERT ON build_aliases
WHEN NEW.event_id IS NOT (
        SELECT id FROM events
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND kind IN ('build.aliased', 'build.unaliased')
            AND json_extract(detail, '$.alias') = NEW.name
        ORDER BY id DESC LIMIT 1
    )
    OR NOT EXISTS (SELECT 1 FROM events WHERE id = NEW.event_id AND kind = 'build.aliased' AND subject = NEW.build_id)
BEGIN
    SELECT RAISE(ABORT, 'an alias is moved by an event, and is where its newest event says');
END

CREATE TRIGGER build_aliases_moved_by_event BEFORE UPDATE ON build_aliases
WHEN NEW.event_id IS NOT (
        SELECT id FROM events
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND kind IN ('build.aliased', 'build.unaliased')
            AND json_extract(detail, '$.alias') = NEW.name
        ORDER BY id DESC LIMIT 1
    )
    OR NOT EXISTS (SELECT 1 FROM events WHERE id = NEW.event_id AND kind = 'build.aliased' AND subject = NEW.build_id)
BEGIN
    SELECT RAISE(ABORT, 'an alias is moved by an event, and is where its newest event says');
END

CREATE TRIGGER build_aliases_removed_by_event BEFORE DELETE ON build_aliases
WHEN coalesce((
        SELECT kind FROM events
        WHERE base_id = OLD.base_id AND domain_id = OLD.domain_id AND kind IN ('build.aliased', 'build.unaliased')
            AND json_extract(detail, '$.alias') = OLD.name
        ORDER BY id DESC LIMIT 1
    ), '') <> 'build.unaliased'
BEGIN
    SELECT RAISE(ABORT, 'an alias is moved by an event, and is where its newest event says');
END

CREATE TRIGGER build_pins_never_change BEFORE UPDATE ON build_pins
BEGIN
    SELECT RAISE(ABORT, 'a pin never changes');
END

CREATE TRIGGER build_pins_not_replaced BEFORE INSERT ON build_pins
WHEN EXISTS (SELECT 1 FROM build_pins WHERE build_id = NEW.build_id)
BEGIN
    SELECT RAISE(ABORT, 'build_pins: a row is never replaced by another');
END

CREATE TRIGGER build_pins_set_by_event BEFORE INSERT ON build_pins
WHEN coalesce((
        SELECT kind FROM events WHERE subject = NEW.build_id AND kind IN ('build.pinned', 'build.unpinned')
        ORDER BY id DESC LIMIT 1
    ), '') <> 'build.pinned'
    OR NOT EXISTS (SELECT 1 FROM builds WHERE id = NEW.build_id AND status = 'succeeded' AND collected_at IS NULL)
BEGIN
    SELECT RAISE(ABORT, 'a succeeded build is pinned and unpinned by an event');
END

CREATE TRIGGER build_pins_removed_by_event BEFORE DELETE ON build_pins
WHEN coalesce((
        SELECT kind FROM events WHERE subject = OLD.build_id AND kind IN ('build.pinned', 'build.unpinned')
        ORDER BY id DESC LIMIT 1
    ), '') <> 'build.unpinned'
BEGIN
    SELECT RAISE(ABORT, 'a succeeded build is pinned and unpinned by an event');
END

CREATE TRIGGER events_of_build_aliases_in_order BEFORE INSERT ON events
WHEN NEW.kind IN ('build.aliased', 'build.unaliased') AND NEW.created_at < (
        SELECT created_at FROM events
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND kind IN ('build.aliased', 'build.unaliased')
        ORDER BY id DESC LIMIT 1
    )
BEGIN
    SELECT RAISE(ABORT, 'events are appended in the order of their time');
END

CREATE TRIGGER events_of_build_aliases_are_whole BEFORE INSERT ON events
WHEN NEW.kind IN ('build.aliased', 'build.unaliased') AND (
        coalesce(json_extract(NEW.detail, '$.alias'), '') = '' OR NEW.base_id IS NULL OR NEW.domain_id IS NULL
        OR NEW.kind = 'build.unaliased' AND NOT EXISTS (
            SELECT 1 FROM build_aliases
            WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND name = json_extract(NEW.detail, '$.alias')
                AND build_id = NEW.subject
        )
    )
BEGIN
    SELECT RAISE(ABORT, 'an event about an alias of builds says which, and where it is or was');
END

CREATE TRIGGER events_move_build_aliases AFTER INSERT ON events
WHEN NEW.kind IN ('build.aliased', 'build.unaliased')
BEGIN
    DELETE FROM build_aliases
    WHERE NEW.kind = 'build.unaliased'
        AND base_id = NEW.base_id AND domain_id = NEW.domain_id AND name = json_extract(NEW.detail, '$.alias');
    UPDATE build_aliases SET build_id = NEW.subject, event_id = NEW.id
    WHERE NEW.kind = 'build.aliased'
        AND base_id = NEW.base_id AND domain_id = NEW.domain_id AND name = json_extract(NEW.detail, '$.alias');
    INSERT INTO build_aliases (base_id, domain_id, name, build_id, event_id, created_at, created_by)
    SELECT NEW.base_id, NEW.domain_id, json_extract(NEW.detail, '$.alias'), NEW.subject, NEW.id, NEW.created_at, NEW.created_by
    WHERE NEW.kind = 'build.aliased' AND NOT EXISTS (
        SELECT 1 FROM build_aliases
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND name = json_extract(NEW.detail, '$.alias')
    );
END

CREATE TRIGGER events_pin_builds AFTER INSERT ON events
WHEN NEW.kind IN ('build.pinned', 'build.unpinned')
BEGIN
    DELETE FROM build_pins WHERE NEW.kind = 'build.unpinned' AND build_id = NEW.subject;
    INSERT INTO build_pins (build_id, created_at, created_by)
    SELECT NEW.subject, NEW.created_at, NEW.created_by WHERE NEW.kind = 'build.pinned';
END

CREATE TRIGGER approvals_never_change BEFORE UPDATE ON approvals
BEGIN
    SELECT RAISE(ABORT, 'an approval never changes');
END

CREATE TRIGGER approvals_stay BEFORE DELETE ON approvals
BEGIN
    SELECT RAISE(ABORT, 'an approval is never removed');
END

CREATE TRIGGER approvals_not_replaced BEFORE INSERT ON approvals
WHEN EXISTS (SELECT 1 FROM approvals WHERE id = NEW.id)
    OR EXISTS (SELECT 1 FROM approvals WHERE adapter_id = NEW.adapter_id AND created_by = NEW.created_by)
    OR EXISTS (SELECT 1 FROM approvals WHERE build_id = NEW.build_id AND created_by = NEW.created_by)
BEGIN
    SELECT RAISE(ABORT, 'approvals: a row is never replaced by another');
END

CREATE TRIGGER approvals_by_another BEFORE INSERT ON approvals
WHEN EXISTS (SELECT 1 FROM adapters WHERE id = NEW.adapter_id AND created_by = NEW.created_by)
    OR EXISTS (SELECT 1 FROM builds WHERE id = NEW.build_id AND created_by = NEW.created_by)
BEGIN
    SELECT RAISE(ABORT, 'who registered or requested something does not approve it');
END

CREATE TRIGGER builds_begin_uncollected BEFORE INSERT ON builds
WHEN NEW.collected_at IS NOT NULL
BEGIN
    SELECT RAISE(ABORT, 'the result of a build goes by an event, which says when, and for good');
END

CREATE TRIGGER builds_collected_by_event BEFORE UPDATE OF collected_at ON builds
WHEN OLD.collected_at IS NOT NULL OR NEW.collected_at IS NULL OR NEW.collected_at IS NOT (
        SELECT created_at FROM events WHERE subject = NEW.id AND kind = 'build.collected' ORDER BY id DESC LIMIT 1
    )
BEGIN
    SELECT RAISE(ABORT, 'the result of a build goes by an event, which says when, and for good');
END

CREATE TRIGGER events_collect_lawfully BEFORE INSERT ON events
WHEN NEW.kind = 'build.collected' AND (
        NOT EXISTS (
            SELECT 1 FROM builds WHERE id = NEW.subject AND status = 'succeeded' AND collected_at IS NULL
        )
        OR EXISTS (SELECT 1 FROM build_aliases WHERE build_id = NEW.subject)
        OR EXISTS (SELECT 1 FROM build_pins WHERE build_id = NEW.subject)
    )
BEGIN
    SELECT RAISE(ABORT, 'only a succeeded build without an alias or a pin loses its result, once');
END

CREATE TRIGGER events_collect_builds AFTER INSERT ON events
WHEN NEW.kind = 'build.collected'
BEGIN
    UPDATE builds SET collected_at = NEW.created_at WHERE id = NEW.subject;
END

CREATE TRIGGER events_pass_gates BEFORE INSERT ON events
WHEN NEW.alias = 'champion'
    AND EXISTS (SELECT 1 FROM gates WHERE domain_id = NEW.domain_id)
    AND coalesce(json_extract(NEW.detail, '$.override'), '') = ''
    AND (
        NEW.adapter_id IS NULL
        OR json_extract(NEW.detail, '$.gate') IS NOT (SELECT version FROM gates WHERE domain_id = NEW.domain_id)
        OR EXISTS (
            SELECT 1 FROM gates
            WHERE domain_id = NEW.domain_id AND requirement IS NOT NULL AND NOT EXISTS (
                SELECT 1 FROM evaluations
                JOIN adapters ON adapters.digest = evaluations.weights
                JOIN base_models ON base_models.id = adapters.base_id AND base_models.digest = evaluations.on_base
                WHERE adapters.id = NEW.adapter_id AND evaluations.id = json_extract(NEW.detail, '$.evaluation')
                    AND evaluations.split = json_extract(gates.requirement, '$.split')
                    AND (evaluations.domain_id = NEW.domain_id OR adapters.role = 'spirit')
            )
        )
        OR (SELECT approvals FROM gates WHERE domain_id = NEW.domain_id)
            > (SELECT count(*) FROM approvals WHERE adapter_id = NEW.adapter_id)
    )
BEGIN
    SELECT RAISE(ABORT, 'champion moves through the gate of its domain: by an evaluation and approvals, or an override');
END

CREATE TRIGGER events_archive_through_gates BEFORE INSERT ON events
WHEN NEW.kind = 'adapter.archived' AND coalesce(json_extract(NEW.detail, '$.override'), '') = ''
    AND EXISTS (SELECT 1 FROM gates WHERE domain_id = NEW.domain_id)
    AND EXISTS (
        SELECT 1 FROM aliases
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND name = 'champion' AND adapter_id = NEW.adapter_id
    )
BEGIN
    SELECT RAISE(ABORT, 'the champion of a domain with a gate is archived only with an override');
END

CREATE TRIGGER events_serve_through_gates BEFORE INSERT ON events
WHEN NEW.kind IN ('build.aliased', 'build.unaliased')
    AND EXISTS (SELECT 1 FROM gates WHERE domain_id = NEW.domain_id)
    AND json_extract(NEW.detail, '$.alias')
        = coalesce((SELECT alias FROM serving_policies WHERE domain_id = NEW.domain_id), 'production')
    AND coalesce(json_extract(NEW.detail, '$.override'), '') = ''
    AND NOT (
        NEW.kind = 'build.aliased' AND coalesce(json_extract(NEW.detail, '$.rollback'), 0) = 1 AND EXISTS (
            SELECT 1 FROM events
            WHERE subject = NEW.subject AND kind = 'build.aliased' AND base_id = NEW.base_id AND domain_id = NEW.domain_id
                AND json_extract(detail, '$.alias') = json_extract(NEW.detail, '$.alias')
        )
    )
    AND (
        NEW.kind = 'build.unaliased'
        OR json_extract(NEW.detail, '$.gate') IS NOT (SELECT version FROM gates WHERE domain_id = NEW.domain_id)
        OR EXISTS (
            SELECT 1 FROM gates
            WHERE domain_id = NEW.domain_id AND requirement IS NOT NULL AND NOT EXISTS (
                SELECT 1 FROM evaluations
                JOIN builds ON builds.digest = evaluations.weights
                JOIN base_models ON base_models.id = builds.base_id
                WHERE builds.id = NEW.subject AND evaluations.id = json_extract(NEW.detail, '$.evaluation')
                    AND evaluations.on_base = CASE json_extract(builds.recipe, '$.output.format')
                        WHEN 'adapter' THEN base_models.digest ELSE '' END
                    AND evaluations.split = json_extract(gates.requirement, '$.split')
                    AND evaluations.domain_id = NEW.domain_id
            )
        )
        OR (SELECT approvals FROM gates WHERE domain_id = NEW.domain_id)
            > (SELECT count(*) FROM approvals WHERE build_id = NEW.subject)
    )
BEGIN
    SELECT RAISE(ABORT, 'what a domain serves moves through its gate: by an evaluation and approvals, or an override');
END

CREATE TRIGGER gates_stay_with_their_domain BEFORE UPDATE OF domain_id ON gates
BEGIN
    SELECT RAISE(ABORT, 'a gate stays with its domain');
END

CREATE TRIGGER gates_not_replaced BEFORE INSERT ON gates
WHEN EXISTS (SELECT 1 FROM gates WHERE domain_id = NEW.domain_id)
BEGIN
    SELECT RAISE(ABORT, 'gates: a row is never replaced by another');
END

CREATE TRIGGER gates_set_by_event BEFORE INSERT ON gates
WHEN NOT EXISTS (
        SELECT 1 FROM events
        WHERE id = (
                SELECT max(id) FROM events
                WHERE domain_id = NEW.domain_id AND kind IN ('domain.gated', 'domain.ungated')
            )
            AND kind = 'domain.gated' AND created_at = NEW.created_at AND created_by = NEW.created_by
            AND json_extract(detail, '$.approvals') = NEW.approvals
            AND json_extract(detail, '$.require') IS json_extract(NEW.requirement, '$')
    )
    OR NEW.version <> (SELECT count(*) FROM events WHERE domain_id = NEW.domain_id AND kind = 'domain.gated')
BEGIN
    SELECT RAISE(ABORT, 'a gate is set and removed by an event, and is what its newest event says');
END

CREATE TRIGGER gates_changed_by_event BEFORE UPDATE ON gates
WHEN NOT EXISTS (
        SELECT 1 FROM events
        WHERE id = (
                SELECT max(id) FROM events
                WHERE domain_id = NEW.domain_id AND kind IN ('domain.gated', 'domain.ungated')
            )
            AND kind = 'domain.gated' AND created_at = NEW.created_at AND created_by = NEW.created_by
            AND json_extract(detail, '$.approvals') = NEW.approvals
            AND json_extract(detail, '$.require') IS json_extract(NEW.requirement, '$')
    )
    OR NEW.version <> (SELECT count(*) FROM events WHERE domain_id = NEW.domain_id AND kind = 'domain.gated')
BEGIN
    SELECT RAISE(ABORT, 'a gate is set and removed by an event, and is what its newest event says');
END

CREATE TRIGGER gates_removed_by_event BEFORE DELETE ON gates
WHEN coalesce((
        SELECT kind FROM events WHERE domain_id = OLD.domain_id AND kind IN ('domain.gated', 'domain.ungated')
        ORDER BY id DESC LIMIT 1
    ), '') <> 'domain.ungated'
BEGIN
    SELECT RAISE(ABORT, 'a gate is set and removed by an event, and is what its newest event says');
END

CREATE TRIGGER serving_policies_stay BEFORE DELETE ON serving_policies
BEGIN
    SELECT RAISE(ABORT, 'how a domain serves its builds is changed, and not removed');
END

CREATE TRIGGER serving_policies_stay_with_their_domain BEFORE UPDATE OF domain_id ON serving_policies
BEGIN
    SELECT RAISE(ABORT, 'how a domain serves its builds is changed, and not removed');
END

CREATE TRIGGER serving_policies_not_replaced BEFORE INSERT ON serving_policies
WHEN EXISTS (SELECT 1 FROM serving_policies WHERE domain_id = NEW.domain_id)
BEGIN
    SELECT RAISE(ABORT, 'serving_policies: a row is never replaced by another');
END

CREATE TRIGGER serving_policies_set_by_event BEFORE INSERT ON serving_policies
WHEN NEW.alias <> coalesce((
        SELECT json_extract(detail, '$."served.alias"') FROM events
        WHERE domain_id = NEW.domain_id AND kind = 'domain.changed' AND json_extract(detail, '$."served.alias"') IS NOT NULL
        ORDER BY id DESC LIMIT 1
    ), 'production')
    OR NEW.promote <> coalesce((
        SELECT json_extract(detail, '$."served.promote"') FROM events
        WHERE domain_id = NEW.domain_id AND kind = 'domain.changed' AND json_extract(detail, '$."served.promote"') IS NOT NULL
        ORDER BY id DESC LIMIT 1
    ), 'manual')
BEGIN
    SELECT RAISE(ABORT, 'how a domain serves its builds is what its newest event says');
END

CREATE TRIGGER serving_policies_changed_by_event BEFORE UPDATE ON serving_policies
WHEN NEW.alias <> coalesce((
        SELECT json_extract(detail, '$."served.alias"') FROM events
        WHERE domain_id = NEW.domain_id AND kind = 'domain.changed' AND json_extract(detail, '$."served.alias"') IS NOT NULL
        ORDER BY id DESC LIMIT 1
    ), 'production')
    OR NEW.promote <> coalesce((
        SELECT json_extract(detail, '$."served.promote"') FROM events
        WHERE domain_id = NEW.domain_id AND kind = 'domain.changed' AND json_extract(detail, '$."served.promote"') IS NOT NULL
        ORDER BY id DESC LIMIT 1
    ), 'manual')
BEGIN
    SELECT RAISE(ABORT, 'how a domain serves its builds is what its newest event says');
END

CREATE TRIGGER events_change_policies_through_gates BEFORE INSERT ON events
WHEN NEW.kind = 'domain.changed' AND coalesce(json_extract(NEW.detail, '$.override'), '') = ''
    AND EXISTS (SELECT 1 FROM gates WHERE domain_id = NEW.domain_id)
    AND EXISTS (
        SELECT 1 FROM build_aliases
        WHERE domain_id = NEW.domain_id AND name IN (
            json_extract(NEW.detail, '$."served.alias"'),
            CASE WHEN json_extract(NEW.detail, '$."served.alias"') IS NOT NULL
                THEN coalesce((SELECT alias FROM serving_policies WHERE domain_id = NEW.domain_id), 'production') END
        )
    )
BEGIN
    SELECT RAISE(ABORT, 'what a domain serves moves through its gate: by an evaluation and approvals, or an override');
END

CREATE TRIGGER adapters_spirit_is_plain BEFORE INSERT ON adapters
WHEN NEW.kind <> 'lora' AND NEW.role = 'spirit'
BEGIN
    SELECT RAISE(ABORT, 'adapters: a spirit is a plain LoRA');
END

CREATE TRIGGER aliases_champion_set_on_plain BEFORE INSERT ON aliases
WHEN NEW.name = 'champion' AND EXISTS (SELECT 1 FROM adapters WHERE id = NEW.adapter_id AND kind <> 'lora')
BEGIN
    SELECT RAISE(ABORT, 'champion names what goes into mixes, and only a plain LoRA does');
END

CREATE TRIGGER aliases_champion_moved_to_plain BEFORE UPDATE ON aliases
WHEN NEW.name = 'champion' AND EXISTS (SELECT 1 FROM adapters WHERE id = NEW.adapter_id AND kind <> 'lora')
BEGIN
    SELECT RAISE(ABORT, 'champion names what goes into mixes, and only a plain LoRA does');
END

CREATE TRIGGER build_inputs_fit_the_kind BEFORE INSERT ON build_inputs
WHEN (SELECT kind FROM adapters WHERE id = NEW.adapter_id) <> (
        SELECT CASE kind WHEN 'index' THEN 'bi-tuning' ELSE 'lora' END FROM builds WHERE id = NEW.build_id
    )
BEGIN
    SELECT RAISE(ABORT, 'build_inputs: only plain LoRAs are mixed, and only a bi-tuning has an index');
END

CREATE TRIGGER build_inputs_of_one_index BEFORE INSERT ON build_inputs
WHEN EXISTS (SELECT 1 FROM builds WHERE id = NEW.build_id AND kind = 'index')
    AND EXISTS (SELECT 1 FROM build_inputs WHERE build_id = NEW.build_id)
BEGIN
    SELECT RAISE(ABORT, 'build_inputs: an index is of one bi-tuning');
END

CREATE TRIGGER build_aliases_set_on_merges BEFORE INSERT ON build_aliases
WHEN EXISTS (SELECT 1 FROM builds WHERE id = NEW.build_id AND kind <> 'merge')
BEGIN
    SELECT RAISE(ABORT, 'what a domain serves is a merge, and no index');
END

CREATE TRIGGER build_aliases_moved_to_merges BEFORE UPDATE ON build_aliases
WHEN EXISTS (SELECT 1 FROM builds WHERE id = NEW.build_id AND kind <> 'merge')
BEGIN
    SELECT RAISE(ABORT, 'what a domain serves is a merge, and no index');
END

CREATE TRIGGER tokens_never_change BEFORE UPDATE OF id, name, digest, scopes, expires_at, event_id, created_at, created_by ON tokens
BEGIN
    SELECT RAISE(ABORT, 'a token keeps its name, its holder, its scopes and its end');
END

CREATE TRIGGER tokens_stay BEFORE DELETE ON tokens
BEGIN
    SELECT RAISE(ABORT, 'a token is revoked, and never removed');
END

CREATE TRIGGER tokens_not_replaced BEFORE INSERT ON tokens
WHEN EXISTS (SELECT 1 FROM tokens WHERE id = NEW.id OR digest = NEW.digest OR event_id = NEW.event_id OR (name = NEW.name AND revoked_at IS NULL))
BEGIN
    SELECT RAISE(ABORT, 'tokens: a row is never replaced by another');
END

CREATE TRIGGER tokens_added_by_event BEFORE INSERT ON tokens
WHEN NEW.revoked_at IS NOT NULL
    OR NOT EXISTS (SELECT 1 FROM events WHERE id = NEW.event_id AND kind = 'token.added' AND subject = NEW.name)
BEGIN
    SELECT RAISE(ABORT, 'a token is added by an event, which comes first');
END

CREATE TRIGGER tokens_revoked_by_event BEFORE UPDATE OF revoked_at ON tokens
WHEN OLD.revoked_at IS NOT NEW.revoked_at AND (
        OLD.revoked_at IS NOT NULL
        OR NOT EXISTS (
            SELECT 1 FROM events
            WHERE kind = 'token.revoked' AND subject = NEW.name AND id > NEW.event_id AND created_at = NEW.revoked_at
        )
    )
BEGIN
    SELECT RAISE(ABORT, 'a token is revoked once, by an event, which comes first');
END

CREATE TRIGGER build_requests_never_change BEFORE UPDATE ON build_requests
BEGIN
    SELECT RAISE(ABORT, 'a request keeps its answer');
END

CREATE TRIGGER build_requests_stay BEFORE DELETE ON build_requests
BEGIN
    SELECT RAISE(ABORT, 'a request keeps its answer');
END

CREATE TRIGGER build_requests_not_replaced BEFORE INSERT ON build_requests
WHEN EXISTS (SELECT 1 FROM build_requests WHERE actor = NEW.actor AND key = NEW.key)
BEGIN
    SELECT RAISE(ABORT, 'build_requests: a row is never replaced by another');
END

CREATE TRIGGER events_wake_webhooks AFTER INSERT ON events
WHEN NEW.domain_id IS NOT NULL
BEGIN
    INSERT INTO webhook_deliveries (webhook_id, event_id, kind, domain_id, status, attempts, created_at)
    SELECT webhooks.id, NEW.id, wanted.value, NEW.domain_id, 'pending', 0, NEW.created_at
    FROM webhooks, json_each(webhooks.kinds) AS wanted
    WHERE webhooks.active
        AND wanted.value = CASE NEW.kind
            WHEN 'alias.set' THEN 'alias.moved' WHEN 'alias.removed' THEN 'alias.moved'
            WHEN 'build.aliased' THEN 'alias.moved' WHEN 'build.unaliased' THEN 'alias.moved'
            WHEN 'adapter.published' THEN 'publication.made' WHEN 'build.published' THEN 'publication.made'
            ELSE NEW.kind END
        AND (json_array_length(webhooks.domains) = 0
            OR EXISTS (SELECT 1 FROM json_each(webhooks.domains) AS only_in WHERE only_in.value = NEW.domain_id))
    ORDER BY webhooks.id;
END

CREATE TRIGGER webhooks_not_replaced BEFORE INSERT ON webhooks
WHEN EXISTS (SELECT 1 FROM webhooks WHERE id = NEW.id)
    OR EXISTS (SELECT 1 FROM webhooks WHERE name = NEW.name)
BEGIN
    SELECT RAISE(ABORT, 'webhooks: a row is never replaced by another');
END

CREATE TRIGGER webhook_deliveries_not_replaced BEFORE INSERT ON webhook_deliveries
WHEN EXISTS (SELECT 1 FROM webhook_deliveries WHERE id = NEW.id)
    OR EXISTS (SELECT 1 FROM webhook_deliveries WHERE webhook_id = NEW.webhook_id AND event_id = NEW.event_id)
BEGIN
    SELECT RAISE(ABORT, 'webhook_deliveries: a row is never replaced by another');
END

CREATE TRIGGER webhook_attempts_not_replaced BEFORE INSERT ON webhook_attempts
WHEN EXISTS (SELECT 1 FROM webhook_attempts WHERE id = NEW.id)
BEGIN
    SELECT RAISE(ABORT, 'webhook_attempts: a row is never replaced by another');
END

CREATE TRIGGER webhooks_never_change BEFORE UPDATE OF id, name, created_at, created_by ON webhooks
BEGIN
    SELECT RAISE(ABORT, 'a webhook keeps its name');
END

CREATE TRIGGER webhook_deliveries_never_change BEFORE UPDATE OF id, webhook_id, event_id, kind, domain_id, created_at ON webhook_deliveries
BEGIN
    SELECT RAISE(ABORT, 'a delivery keeps its event and its webhook');
END

CREATE TRIGGER webhook_attempts_never_change BEFORE UPDATE ON webhook_attempts
BEGIN
    SELECT RAISE(ABORT, 'an attempt to deliver never changes');
END

CREATE TRIGGER webhook_deliveries_stay BEFORE DELETE ON webhook_deliveries
WHEN EXISTS (SELECT 1 FROM webhooks WHERE id = OLD.webhook_id)
BEGIN
    SELECT RAISE(ABORT, 'a delivery goes only with its webhook');
END

CREATE TRIGGER webhook_attempts_stay BEFORE DELETE ON webhook_attempts
WHEN EXISTS (SELECT 1 FROM webhook_deliveries WHERE id = OLD.delivery_id)
BEGIN
    SELECT RAISE(ABORT, 'a delivery goes only with its webhook');
END

CREATE TRIGGER webhook_deliveries_begin_pending BEFORE INSERT ON webhook_deliveries
WHEN NEW.status <> 'pending' OR NEW.attempts <> 0
    OR NOT EXISTS (SELECT 1 FROM events WHERE id = NEW.event_id AND domain_id = NEW.domain_id)
BEGIN
    SELECT RAISE(ABORT, 'a delivery begins as pending, of an event of its domain');
END

CREATE TRIGGER webhook_deliveries_end_by_attempt BEFORE UPDATE OF status ON webhook_deliveries
WHEN NEW.status = 'delivered' AND OLD.status <> 'delivered' AND NOT EXISTS (
        SELECT 1 FROM webhook_attempts WHERE delivery_id = NEW.id AND status_code BETWEEN 200 AND 299
    )
    OR NEW.status = 'dead' AND OLD.status <> 'dead' AND NOT EXISTS (
        SELECT 1 FROM webhook_attempts WHERE delivery_id = NEW.id
    )
BEGIN
    SELECT RAISE(ABORT, 'a delivery ends by an attempt, which comes first');
END
