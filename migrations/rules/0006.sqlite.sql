-- The rules that keys and checks cannot express, for SQLite. Statements are separated by empty lines.
-- A migration that changes a rule brings a whole new set under its own number; this one stays as it was released.

CREATE TRIGGER base_models_never_change BEFORE UPDATE ON base_models
BEGIN
    SELECT RAISE(ABORT, 'a base model never changes');
END

CREATE TRIGGER domains_never_change BEFORE UPDATE OF id, name, role, created_at, created_by ON domains
BEGIN
    SELECT RAISE(ABORT, 'a domain keeps its name and role');
END

CREATE TRIGGER adapters_never_change BEFORE UPDATE OF id, base_id, domain_id, role, version, digest, rank, alpha, target_modules, tensors, bytes, metrics, tags, note, context, created_at, created_by ON adapters
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

CREATE TRIGGER adapter_words_never_change BEFORE UPDATE ON adapter_words
BEGIN
    SELECT RAISE(ABORT, 'an adapter version never changes');
END

CREATE TRIGGER aliases_never_change BEFORE UPDATE OF base_id, domain_id, name, created_at, created_by ON aliases
BEGIN
    SELECT RAISE(ABORT, 'an alias keeps its name and place');
END

CREATE TRIGGER builds_never_change BEFORE UPDATE OF id, base_id, domain_id, key, recipe, inputs, created_at, created_by ON builds
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

CREATE TRIGGER adapter_tags_stay BEFORE DELETE ON adapter_tags
BEGIN
    SELECT RAISE(ABORT, 'an adapter version never changes');
END

CREATE TRIGGER adapter_metrics_stay BEFORE DELETE ON adapter_metrics
BEGIN
    SELECT RAISE(ABORT, 'an adapter version never changes');
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

CREATE TRIGGER adapter_tags_as_registered BEFORE INSERT ON adapter_tags
WHEN NOT EXISTS (
        SELECT 1 FROM adapters, json_each(adapters.tags) AS given
        WHERE adapters.id = NEW.adapter_id AND given.value = NEW.tag
    )
BEGIN
    SELECT RAISE(ABORT, 'an adapter version never changes');
END

CREATE TRIGGER adapter_metrics_as_registered BEFORE INSERT ON adapter_metrics
WHEN NOT EXISTS (
        SELECT 1 FROM adapters, json_each(adapters.metrics) AS given
        WHERE adapters.id = NEW.adapter_id AND given.key = NEW.name AND given.value = NEW.value
    )
BEGIN
    SELECT RAISE(ABORT, 'an adapter version never changes');
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
