-- The rules that keys and checks cannot express, for PostgreSQL. Statements are separated by empty lines.
-- A migration that changes a rule brings a whole new set under its own number; this one stays as it was released.

CREATE FUNCTION reccocktail_refuse() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
END
$$

CREATE TRIGGER adapters_never_change BEFORE UPDATE OF id, base_id, domain_id, role, kind, version, digest, rank, alpha, target_modules, tensors, bytes, metrics, tags, note, context, created_at, created_by ON adapters FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an adapter version never changes')

CREATE TRIGGER adapter_tags_never_change BEFORE UPDATE ON adapter_tags FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an adapter version never changes')

CREATE TRIGGER adapter_metrics_never_change BEFORE UPDATE ON adapter_metrics FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an adapter version never changes')

CREATE TRIGGER aliases_never_change BEFORE UPDATE OF base_id, domain_id, name, created_at, created_by ON aliases FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an alias keeps its name and place')

CREATE TRIGGER builds_never_change BEFORE UPDATE OF id, base_id, domain_id, kind, key, recipe, inputs, created_at, created_by ON builds FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('what a build was asked for never changes')

CREATE TRIGGER build_inputs_never_change BEFORE UPDATE ON build_inputs FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('what went into a build never changes')

CREATE TRIGGER publications_never_change BEFORE UPDATE ON publications FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a publication never changes')

CREATE TRIGGER withdrawals_never_change BEFORE UPDATE ON withdrawals FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a withdrawal never changes')

CREATE TRIGGER events_never_change BEFORE UPDATE ON events FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('events are only appended')

CREATE TRIGGER base_models_stay BEFORE DELETE ON base_models FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a base model is never removed')

CREATE TRIGGER domains_stay BEFORE DELETE ON domains FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a domain is never removed')

CREATE TRIGGER adapters_stay BEFORE DELETE ON adapters FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an adapter version is never removed')

CREATE TRIGGER adapter_words_stay BEFORE DELETE ON adapter_words FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an adapter version never changes')

CREATE TRIGGER builds_stay BEFORE DELETE ON builds FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a build is never removed')

CREATE TRIGGER build_inputs_stay BEFORE DELETE ON build_inputs FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('what went into a build never changes')

CREATE TRIGGER publications_stay BEFORE DELETE ON publications FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a publication is never removed')

CREATE TRIGGER withdrawals_stay BEFORE DELETE ON withdrawals FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a withdrawal is never removed')

CREATE TRIGGER events_stay BEFORE DELETE ON events FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('events are only appended')

CREATE TRIGGER base_models_stay_all BEFORE TRUNCATE ON base_models FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('a base model is never removed')

CREATE TRIGGER domains_stay_all BEFORE TRUNCATE ON domains FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('a domain is never removed')

CREATE TRIGGER adapters_stay_all BEFORE TRUNCATE ON adapters FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('an adapter version is never removed')

CREATE TRIGGER adapter_tags_stay_all BEFORE TRUNCATE ON adapter_tags FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('an adapter version never changes')

CREATE TRIGGER adapter_metrics_stay_all BEFORE TRUNCATE ON adapter_metrics FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('an adapter version never changes')

CREATE TRIGGER adapter_words_stay_all BEFORE TRUNCATE ON adapter_words FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('an adapter version never changes')

CREATE TRIGGER builds_stay_all BEFORE TRUNCATE ON builds FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('a build is never removed')

CREATE TRIGGER build_inputs_stay_all BEFORE TRUNCATE ON build_inputs FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('what went into a build never changes')

CREATE TRIGGER publications_stay_all BEFORE TRUNCATE ON publications FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('a publication is never removed')

CREATE TRIGGER withdrawals_stay_all BEFORE TRUNCATE ON withdrawals FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('a withdrawal is never removed')

CREATE TRIGGER events_stay_all BEFORE TRUNCATE ON events FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('events are only appended')

CREATE TRIGGER aliases_stay_all BEFORE TRUNCATE ON aliases FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('an alias is moved by an event, and is where its newest event says')

CREATE FUNCTION reccocktail_adapters_numbered() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.version <> 1 + (
        SELECT coalesce(max(version), 0) FROM adapters
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER adapters_numbered BEFORE INSERT ON adapters FOR EACH ROW
EXECUTE FUNCTION reccocktail_adapters_numbered('versions are numbered 1, 2, 3 and so on, without gaps')

CREATE FUNCTION reccocktail_adapters_begin_active() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.archived_at IS NOT NULL THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER adapters_begin_active BEFORE INSERT ON adapters FOR EACH ROW
EXECUTE FUNCTION reccocktail_adapters_begin_active('a version is archived and restored by an event, which says when')

CREATE FUNCTION reccocktail_adapters_archived_by_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.archived_at IS DISTINCT FROM (
        SELECT CASE kind WHEN 'adapter.archived' THEN created_at END FROM events
        WHERE adapter_id = NEW.id AND kind IN ('adapter.archived', 'adapter.restored')
        ORDER BY id DESC LIMIT 1
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER adapters_archived_by_event BEFORE UPDATE OF archived_at ON adapters FOR EACH ROW
EXECUTE FUNCTION reccocktail_adapters_archived_by_event('a version is archived and restored by an event, which says when')

CREATE FUNCTION reccocktail_adapters_searchable() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO adapter_tags (tag, adapter_id)
    SELECT DISTINCT value, NEW.id FROM json_array_elements_text(NEW.tags);
    INSERT INTO adapter_metrics (name, adapter_id, value)
    SELECT key, NEW.id, value::double precision FROM json_each_text(NEW.metrics);
    RETURN NULL;
END
$$

CREATE TRIGGER adapters_searchable AFTER INSERT ON adapters FOR EACH ROW
EXECUTE FUNCTION reccocktail_adapters_searchable()

CREATE FUNCTION reccocktail_aliases_by_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (
        SELECT 1 FROM events
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND alias = NEW.name AND id > NEW.event_id
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER aliases_by_event BEFORE INSERT OR UPDATE ON aliases FOR EACH ROW
EXECUTE FUNCTION reccocktail_aliases_by_event('an alias is moved by an event, and is where its newest event says')

CREATE FUNCTION reccocktail_aliases_on_active() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM adapters WHERE id = NEW.adapter_id AND archived_at IS NOT NULL) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER aliases_on_active BEFORE INSERT OR UPDATE ON aliases FOR EACH ROW
EXECUTE FUNCTION reccocktail_aliases_on_active('an archived version takes no alias')

CREATE FUNCTION reccocktail_aliases_removed_by_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF (
        SELECT adapter_id FROM events
        WHERE base_id = OLD.base_id AND domain_id = OLD.domain_id AND alias = OLD.name
        ORDER BY id DESC LIMIT 1
    ) IS NOT NULL THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END
$$

CREATE TRIGGER aliases_removed_by_event BEFORE DELETE ON aliases FOR EACH ROW
EXECUTE FUNCTION reccocktail_aliases_removed_by_event('an alias is moved by an event, and is where its newest event says')

CREATE FUNCTION reccocktail_builds_begin_queued() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.status <> 'queued' THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER builds_begin_queued BEFORE INSERT ON builds FOR EACH ROW
EXECUTE FUNCTION reccocktail_builds_begin_queued('a build begins as queued')

CREATE FUNCTION reccocktail_builds_by_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF (TG_OP = 'INSERT' OR NEW.status <> OLD.status) AND coalesce((
        SELECT kind FROM events WHERE subject = NEW.id AND kind IN ('build.queued', 'build.running', 'build.succeeded', 'build.failed', 'build.cancelled')
        ORDER BY id DESC LIMIT 1
    ), '') <> 'build.' || NEW.status THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER builds_by_event BEFORE INSERT OR UPDATE OF status ON builds FOR EACH ROW
EXECUTE FUNCTION reccocktail_builds_by_event('a build changes its status by an event, which comes first')

CREATE FUNCTION reccocktail_builds_move_lawfully() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.status <> OLD.status
    AND OLD.status || '>' || NEW.status NOT IN ('queued>running', 'queued>failed', 'queued>cancelled', 'running>queued', 'running>succeeded', 'running>failed', 'running>cancelled', 'failed>queued', 'cancelled>queued') THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER builds_move_lawfully BEFORE UPDATE OF status ON builds FOR EACH ROW
EXECUTE FUNCTION reccocktail_builds_move_lawfully('a build cannot change to that status from the one it has')

CREATE FUNCTION reccocktail_builds_results_stay() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF OLD.status = 'succeeded' THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER builds_results_stay BEFORE UPDATE OF digest, coefficients, report, error, worker, started_at, finished_at ON builds FOR EACH ROW
EXECUTE FUNCTION reccocktail_builds_results_stay('the result of a build that has succeeded never changes')

CREATE FUNCTION reccocktail_events_in_order() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.alias IS NOT NULL AND NEW.created_at < (
        SELECT created_at FROM events
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND alias = NEW.alias
        ORDER BY id DESC LIMIT 1
    )
    OR NEW.adapter_id IS NOT NULL AND NEW.created_at < (
        SELECT created_at FROM events WHERE adapter_id = NEW.adapter_id ORDER BY id DESC LIMIT 1
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER events_in_order BEFORE INSERT ON events FOR EACH ROW
EXECUTE FUNCTION reccocktail_events_in_order('events are appended in the order of their time')

CREATE FUNCTION reccocktail_events_move_aliases() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.alias IS NULL THEN
        RETURN NULL;
    END IF;
    IF NEW.adapter_id IS NULL THEN
        DELETE FROM aliases
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND name = NEW.alias;
    ELSE
        INSERT INTO aliases (base_id, domain_id, name, adapter_id, event_id, created_at, created_by)
        VALUES (NEW.base_id, NEW.domain_id, NEW.alias, NEW.adapter_id, NEW.id, NEW.created_at, NEW.created_by)
        ON CONFLICT (base_id, domain_id, name)
        DO UPDATE SET adapter_id = excluded.adapter_id, event_id = excluded.event_id;
    END IF;
    RETURN NULL;
END
$$

CREATE TRIGGER events_move_aliases AFTER INSERT ON events FOR EACH ROW
EXECUTE FUNCTION reccocktail_events_move_aliases()

CREATE FUNCTION reccocktail_events_archive_versions() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.kind IN ('adapter.archived', 'adapter.restored') THEN
        UPDATE adapters
        SET is_current = is_current AND NEW.kind = 'adapter.restored',
            archived_at = CASE NEW.kind WHEN 'adapter.archived' THEN NEW.created_at END
        WHERE id = NEW.adapter_id;
    END IF;
    RETURN NULL;
END
$$

CREATE TRIGGER events_archive_versions AFTER INSERT ON events FOR EACH ROW
EXECUTE FUNCTION reccocktail_events_archive_versions()

CREATE FUNCTION reccocktail_builds_stay_own() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF OLD.own_recipe AND NEW.own_recipe IS NOT TRUE THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER builds_stay_own BEFORE UPDATE OF own_recipe ON builds FOR EACH ROW
EXECUTE FUNCTION reccocktail_builds_stay_own('a build by the own recipe of its domain stays one')

CREATE TRIGGER evaluations_never_change BEFORE UPDATE ON evaluations FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an evaluation never changes')

CREATE TRIGGER evaluations_stay BEFORE DELETE ON evaluations FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an evaluation is never removed')

CREATE FUNCTION reccocktail_evaluations_searchable() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO evaluation_metrics (name, evaluation_id, value)
    SELECT key, NEW.id, (value ->> 'mean')::double precision FROM json_each(NEW.metrics);
    RETURN NULL;
END
$$

CREATE TRIGGER evaluations_searchable AFTER INSERT ON evaluations FOR EACH ROW
EXECUTE FUNCTION reccocktail_evaluations_searchable()

CREATE TRIGGER evaluation_metrics_never_change BEFORE UPDATE ON evaluation_metrics FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an evaluation never changes')

CREATE TRIGGER evaluation_metrics_stay BEFORE DELETE ON evaluation_metrics FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an evaluation never changes')

CREATE FUNCTION reccocktail_evaluation_metrics_as_measured() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM evaluations, json_each(evaluations.metrics) AS found
        WHERE evaluations.id = NEW.evaluation_id AND found.key = NEW.name
            AND (found.value ->> 'mean')::double precision = NEW.value
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER evaluation_metrics_as_measured BEFORE INSERT ON evaluation_metrics FOR EACH ROW
EXECUTE FUNCTION reccocktail_evaluation_metrics_as_measured('an evaluation never changes')

CREATE TRIGGER recipes_never_change BEFORE UPDATE ON recipes FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a recipe keeps its name and kind')

CREATE TRIGGER recipes_stay BEFORE DELETE ON recipes FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a recipe is never removed')

CREATE TRIGGER recipes_stay_all BEFORE TRUNCATE ON recipes FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('a recipe is never removed')

CREATE TRIGGER recipe_versions_never_change BEFORE UPDATE ON recipe_versions FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a version of a recipe never changes')

CREATE TRIGGER recipe_versions_stay BEFORE DELETE ON recipe_versions FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a version of a recipe is never removed')

CREATE TRIGGER recipe_versions_stay_all BEFORE TRUNCATE ON recipe_versions FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('a version of a recipe is never removed')

CREATE FUNCTION reccocktail_recipe_versions_numbered() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.version <> 1 + (
        SELECT coalesce(max(version), 0) FROM recipe_versions WHERE recipe_id = NEW.recipe_id
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER recipe_versions_numbered BEFORE INSERT ON recipe_versions FOR EACH ROW
EXECUTE FUNCTION reccocktail_recipe_versions_numbered('versions of a recipe are numbered 1, 2, 3 and so on, without gaps')

CREATE FUNCTION reccocktail_recipe_versions_by_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM recipes JOIN events
            ON events.subject = recipes.name || '@v' || NEW.version AND events.kind = recipes.kind || '.added'
        WHERE recipes.id = NEW.recipe_id
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER recipe_versions_by_event BEFORE INSERT ON recipe_versions FOR EACH ROW
EXECUTE FUNCTION reccocktail_recipe_versions_by_event('a version of a recipe is added by an event, which comes first')

CREATE FUNCTION reccocktail_domains_have_a_recipe_that_is_kept() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF (TG_OP = 'INSERT' OR NEW.recipe IS DISTINCT FROM OLD.recipe) AND NEW.recipe ~ '[@./\\]' AND NOT EXISTS (
        SELECT 1 FROM recipes JOIN recipe_versions ON recipe_versions.recipe_id = recipes.id
        WHERE recipes.kind = 'recipe' AND NEW.recipe = recipes.name || '@v' || recipe_versions.version
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER domains_have_a_recipe_that_is_kept BEFORE INSERT OR UPDATE OF recipe ON domains FOR EACH ROW
EXECUTE FUNCTION reccocktail_domains_have_a_recipe_that_is_kept('the recipe of a domain is one that ships, or a version of one in the registry')

CREATE TRIGGER base_models_never_change BEFORE UPDATE OF id, source, revision, digest, architecture, dtype, parameters, bytes, created_at, created_by ON base_models FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a base model never changes')

CREATE FUNCTION reccocktail_base_models_removed_by_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT (
        NEW.name = OLD.name AND NEW.removed_at IS NOT DISTINCT FROM OLD.removed_at
        OR OLD.removed_at IS NULL AND NEW.name = OLD.name || ' (removed ' || NEW.id || ')'
            AND NEW.removed_at IS NOT DISTINCT FROM (
                SELECT created_at FROM events
                WHERE base_id = NEW.id AND domain_id IS NULL AND kind = 'base.removed' ORDER BY id DESC LIMIT 1
            ) AND NEW.removed_at IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM adapters WHERE base_id = NEW.id)
            AND NOT EXISTS (SELECT 1 FROM builds WHERE base_id = NEW.id)
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER base_models_removed_by_event BEFORE UPDATE OF name, removed_at ON base_models FOR EACH ROW
EXECUTE FUNCTION reccocktail_base_models_removed_by_event('a base model is removed by an event, and only where nothing refers to it')

CREATE TRIGGER domains_never_change BEFORE UPDATE OF id, role, created_at, created_by ON domains FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a domain keeps its name and role')

CREATE FUNCTION reccocktail_domains_named_by_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT (
        NEW.name = OLD.name AND NEW.removed_at IS NOT DISTINCT FROM OLD.removed_at
        OR OLD.removed_at IS NULL AND NEW.removed_at IS NULL AND NEW.name IS NOT DISTINCT FROM (
                SELECT CASE kind WHEN 'domain.renamed' THEN detail ->> 'to' END FROM events
                WHERE domain_id = NEW.id AND kind IN ('domain.renamed', 'domain.removed') ORDER BY id DESC LIMIT 1
            )
            AND NOT EXISTS (SELECT 1 FROM builds WHERE domain_id = NEW.id)
            AND NOT EXISTS (
                SELECT 1 FROM build_inputs JOIN adapters ON adapters.id = build_inputs.adapter_id
                WHERE adapters.domain_id = NEW.id
            )
        OR OLD.removed_at IS NULL AND NEW.name = OLD.name || ' (removed ' || NEW.id || ')'
            AND NEW.removed_at IS NOT DISTINCT FROM (
                SELECT created_at FROM events
                WHERE domain_id = NEW.id AND kind = 'domain.removed' ORDER BY id DESC LIMIT 1
            ) AND NEW.removed_at IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM adapters WHERE domain_id = NEW.id)
            AND NOT EXISTS (SELECT 1 FROM builds WHERE domain_id = NEW.id)
            AND NOT EXISTS (SELECT 1 FROM evaluations WHERE domain_id = NEW.id)
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER domains_named_by_event BEFORE UPDATE OF name, removed_at ON domains FOR EACH ROW
EXECUTE FUNCTION reccocktail_domains_named_by_event('a domain is renamed or removed by an event, and only where nothing refers to it')

CREATE FUNCTION reccocktail_domains_searchable() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.name <> OLD.name THEN
        UPDATE adapter_words SET words = NEW.name || substr(words, strpos(words, ' '))
        WHERE adapter_id IN (SELECT id FROM adapters WHERE domain_id = NEW.id);
    END IF;
    RETURN NULL;
END
$$

CREATE TRIGGER domains_searchable AFTER UPDATE OF name ON domains FOR EACH ROW
EXECUTE FUNCTION reccocktail_domains_searchable()

CREATE FUNCTION reccocktail_of_what_is_there() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM 1 FROM domains WHERE id = NEW.domain_id FOR KEY SHARE;
    PERFORM 1 FROM base_models WHERE id = NEW.base_id FOR KEY SHARE;
    IF EXISTS (SELECT 1 FROM domains WHERE id = NEW.domain_id AND removed_at IS NOT NULL)
        OR EXISTS (SELECT 1 FROM base_models WHERE id = NEW.base_id AND removed_at IS NOT NULL) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER adapters_of_what_is_there BEFORE INSERT ON adapters FOR EACH ROW
EXECUTE FUNCTION reccocktail_of_what_is_there('a removed domain or base model takes nothing new')

CREATE TRIGGER builds_of_what_is_there BEFORE INSERT ON builds FOR EACH ROW
EXECUTE FUNCTION reccocktail_of_what_is_there('a removed domain or base model takes nothing new')

CREATE FUNCTION reccocktail_evaluations_of_what_is_there() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM 1 FROM domains WHERE id = NEW.domain_id FOR KEY SHARE;
    IF EXISTS (SELECT 1 FROM domains WHERE id = NEW.domain_id AND removed_at IS NOT NULL) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER evaluations_of_what_is_there BEFORE INSERT ON evaluations FOR EACH ROW
EXECUTE FUNCTION reccocktail_evaluations_of_what_is_there('a removed domain or base model takes nothing new')

CREATE FUNCTION reccocktail_begin_present() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.removed_at IS NOT NULL OR NEW.name LIKE '% (removed %' THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER domains_begin_present BEFORE INSERT ON domains FOR EACH ROW
EXECUTE FUNCTION reccocktail_begin_present('a domain is renamed or removed by an event, and only where nothing refers to it')

CREATE TRIGGER base_models_begin_present BEFORE INSERT ON base_models FOR EACH ROW
EXECUTE FUNCTION reccocktail_begin_present('a base model is removed by an event, and only where nothing refers to it')

CREATE FUNCTION reccocktail_adapters_content_once() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF OLD.content IS NOT NULL AND NEW.content IS DISTINCT FROM OLD.content THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER adapters_content_once BEFORE UPDATE OF content ON adapters FOR EACH ROW
EXECUTE FUNCTION reccocktail_adapters_content_once('the digest of a version''s content is set once')

CREATE FUNCTION reccocktail_adapters_content_not_twice() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.content IS NOT NULL AND EXISTS (
        SELECT 1 FROM adapters
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND content = NEW.content
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER adapters_content_not_twice BEFORE INSERT ON adapters FOR EACH ROW
EXECUTE FUNCTION reccocktail_adapters_content_not_twice('adapters: this content is another version of the same domain already')

CREATE FUNCTION reccocktail_adapter_tags_follow() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM json_array_elements_text(coalesce(
            (SELECT tags FROM annotations WHERE adapter_id = NEW.adapter_id),
            (SELECT tags FROM adapters WHERE id = NEW.adapter_id)
        )) AS given WHERE given.value = NEW.tag
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER adapter_tags_follow BEFORE INSERT ON adapter_tags FOR EACH ROW
EXECUTE FUNCTION reccocktail_adapter_tags_follow('what search looks in follows the metadata')

CREATE FUNCTION reccocktail_adapter_tags_stay() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (
        SELECT 1 FROM json_array_elements_text(coalesce(
            (SELECT tags FROM annotations WHERE adapter_id = OLD.adapter_id),
            (SELECT tags FROM adapters WHERE id = OLD.adapter_id)
        )) AS given WHERE given.value = OLD.tag
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END
$$

CREATE TRIGGER adapter_tags_stay BEFORE DELETE ON adapter_tags FOR EACH ROW
EXECUTE FUNCTION reccocktail_adapter_tags_stay('what search looks in follows the metadata')

CREATE FUNCTION reccocktail_adapter_metrics_follow() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM json_each(coalesce(
            (SELECT metrics FROM annotations WHERE adapter_id = NEW.adapter_id),
            (SELECT metrics FROM adapters WHERE id = NEW.adapter_id)
        )) AS given
        WHERE given.key = NEW.name AND json_typeof(given.value) = 'number'
            AND given.value::text::double precision = NEW.value
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER adapter_metrics_follow BEFORE INSERT ON adapter_metrics FOR EACH ROW
EXECUTE FUNCTION reccocktail_adapter_metrics_follow('what search looks in follows the metadata')

CREATE FUNCTION reccocktail_adapter_metrics_stay() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (
        SELECT 1 FROM json_each(coalesce(
            (SELECT metrics FROM annotations WHERE adapter_id = OLD.adapter_id),
            (SELECT metrics FROM adapters WHERE id = OLD.adapter_id)
        )) AS given
        WHERE given.key = OLD.name AND json_typeof(given.value) = 'number'
            AND given.value::text::double precision = OLD.value
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END
$$

CREATE TRIGGER adapter_metrics_stay BEFORE DELETE ON adapter_metrics FOR EACH ROW
EXECUTE FUNCTION reccocktail_adapter_metrics_stay('what search looks in follows the metadata')

CREATE FUNCTION reccocktail_adapter_words_follow() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.adapter_id <> OLD.adapter_id OR NEW.words IS DISTINCT FROM (
        SELECT domains.name FROM adapters JOIN domains ON domains.id = adapters.domain_id
        WHERE adapters.id = NEW.adapter_id
    ) || coalesce(
        (SELECT words FROM annotations WHERE adapter_id = NEW.adapter_id), substr(OLD.words, strpos(OLD.words, ' '))
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER adapter_words_follow BEFORE UPDATE ON adapter_words FOR EACH ROW
EXECUTE FUNCTION reccocktail_adapter_words_follow('what search looks in follows the metadata')

CREATE TRIGGER annotations_stay BEFORE DELETE ON annotations FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('metadata stay where they are: an edit changes them')

CREATE TRIGGER annotations_stay_all BEFORE TRUNCATE ON annotations FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('metadata stay where they are: an edit changes them')

CREATE TRIGGER annotations_never_move BEFORE UPDATE OF id, adapter_id, domain_id, base_id, build_id ON annotations FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('metadata stay where they are: an edit changes them')

CREATE FUNCTION reccocktail_annotations_by_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    before bigint;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        before := OLD.event_id;
    END IF;
    IF NEW.event_id IS DISTINCT FROM (CASE
        WHEN NEW.adapter_id IS NOT NULL THEN (SELECT id FROM events WHERE adapter_id = NEW.adapter_id AND kind = 'adapter.edited' ORDER BY id DESC LIMIT 1)
        WHEN NEW.domain_id IS NOT NULL THEN (SELECT id FROM events WHERE domain_id = NEW.domain_id AND kind = 'domain.edited' ORDER BY id DESC LIMIT 1)
        WHEN NEW.base_id IS NOT NULL THEN (SELECT id FROM events WHERE base_id = NEW.base_id AND domain_id IS NULL AND kind = 'base.edited' ORDER BY id DESC LIMIT 1)
        ELSE (SELECT id FROM events WHERE subject = NEW.build_id AND kind = 'build.edited' ORDER BY id DESC LIMIT 1)
    END) OR NOT coalesce(NEW.event_id > before, true) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER annotations_by_event BEFORE INSERT OR UPDATE ON annotations FOR EACH ROW
EXECUTE FUNCTION reccocktail_annotations_by_event('metadata change by an event, and are what their newest event left')

CREATE FUNCTION reccocktail_annotations_searchable() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    tags_before json;
    metrics_before json;
BEGIN
    IF NEW.adapter_id IS NULL THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        tags_before := OLD.tags;
        metrics_before := OLD.metrics;
    ELSE
        SELECT tags, metrics INTO tags_before, metrics_before FROM adapters WHERE id = NEW.adapter_id;
    END IF;
    DELETE FROM adapter_tags
    WHERE adapter_id = NEW.adapter_id AND tag IN (SELECT value FROM json_array_elements_text(tags_before))
        AND tag NOT IN (SELECT value #>> '{}' FROM json_array_elements(NEW.tags) WHERE json_typeof(value) = 'string');
    INSERT INTO adapter_tags (tag, adapter_id)
    SELECT DISTINCT value #>> '{}', NEW.adapter_id FROM json_array_elements(NEW.tags)
    WHERE json_typeof(value) = 'string'
    ON CONFLICT DO NOTHING;
    DELETE FROM adapter_metrics
    WHERE adapter_id = NEW.adapter_id AND name IN (SELECT key FROM json_each(metrics_before))
        AND NOT EXISTS (
            SELECT 1 FROM json_each(NEW.metrics) AS given
            WHERE given.key = adapter_metrics.name AND json_typeof(given.value) = 'number'
                AND given.value::text::double precision = adapter_metrics.value
        );
    INSERT INTO adapter_metrics (name, adapter_id, value)
    SELECT key, NEW.adapter_id, value::text::double precision FROM json_each(NEW.metrics)
    WHERE json_typeof(value) = 'number'
    ON CONFLICT DO NOTHING;
    UPDATE adapter_words
    SET words = (
        SELECT domains.name FROM adapters JOIN domains ON domains.id = adapters.domain_id
        WHERE adapters.id = NEW.adapter_id
    ) || NEW.words
    WHERE adapter_id = NEW.adapter_id;
    RETURN NULL;
END
$$

CREATE TRIGGER annotations_searchable AFTER INSERT OR UPDATE ON annotations FOR EACH ROW
EXECUTE FUNCTION reccocktail_annotations_searchable()

CREATE TRIGGER build_aliases_never_change BEFORE UPDATE OF base_id, domain_id, name, created_at, created_by ON build_aliases FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an alias keeps its name and place')

CREATE TRIGGER build_pins_never_change BEFORE UPDATE ON build_pins FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a pin never changes')

CREATE TRIGGER build_aliases_stay_all BEFORE TRUNCATE ON build_aliases FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('an alias is moved by an event, and is where its newest event says')

CREATE TRIGGER build_pins_stay_all BEFORE TRUNCATE ON build_pins FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('a succeeded build is pinned and unpinned by an event')

CREATE FUNCTION reccocktail_build_aliases_on_succeeded() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM builds
        WHERE id = NEW.build_id AND base_id = NEW.base_id AND domain_id = NEW.domain_id AND status = 'succeeded'
            AND collected_at IS NULL
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER build_aliases_on_succeeded BEFORE INSERT OR UPDATE ON build_aliases FOR EACH ROW
EXECUTE FUNCTION reccocktail_build_aliases_on_succeeded('an alias is on a succeeded build of its own base and domain')

CREATE FUNCTION reccocktail_build_aliases_by_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.event_id IS DISTINCT FROM (
        SELECT id FROM events
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND kind IN ('build.aliased', 'build.unaliased')
            AND detail ->> 'alias' = NEW.name
        ORDER BY id DESC LIMIT 1
    )
    OR NOT EXISTS (SELECT 1 FROM events WHERE id = NEW.event_id AND kind = 'build.aliased' AND subject = NEW.build_id) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER build_aliases_by_event BEFORE INSERT OR UPDATE ON build_aliases FOR EACH ROW
EXECUTE FUNCTION reccocktail_build_aliases_by_event('an alias is moved by an event, and is where its newest event says')

CREATE FUNCTION reccocktail_build_aliases_removed_by_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF coalesce((
        SELECT kind FROM events
        WHERE base_id = OLD.base_id AND domain_id = OLD.domain_id AND kind IN ('build.aliased', 'build.unaliased')
            AND detail ->> 'alias' = OLD.name
        ORDER BY id DESC LIMIT 1
    ), '') <> 'build.unaliased' THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END
$$

CREATE TRIGGER build_aliases_removed_by_event BEFORE DELETE ON build_aliases FOR EACH ROW
EXECUTE FUNCTION reccocktail_build_aliases_removed_by_event('an alias is moved by an event, and is where its newest event says')

CREATE FUNCTION reccocktail_build_pins_set_by_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF coalesce((
        SELECT kind FROM events WHERE subject = NEW.build_id AND kind IN ('build.pinned', 'build.unpinned')
        ORDER BY id DESC LIMIT 1
    ), '') <> 'build.pinned'
    OR NOT EXISTS (SELECT 1 FROM builds WHERE id = NEW.build_id AND status = 'succeeded' AND collected_at IS NULL) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER build_pins_set_by_event BEFORE INSERT ON build_pins FOR EACH ROW
EXECUTE FUNCTION reccocktail_build_pins_set_by_event('a succeeded build is pinned and unpinned by an event')

CREATE FUNCTION reccocktail_build_pins_removed_by_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF coalesce((
        SELECT kind FROM events WHERE subject = OLD.build_id AND kind IN ('build.pinned', 'build.unpinned')
        ORDER BY id DESC LIMIT 1
    ), '') <> 'build.unpinned' THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END
$$

CREATE TRIGGER build_pins_removed_by_event BEFORE DELETE ON build_pins FOR EACH ROW
EXECUTE FUNCTION reccocktail_build_pins_removed_by_event('a succeeded build is pinned and unpinned by an event')

CREATE FUNCTION reccocktail_events_of_build_aliases_in_order() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.kind IN ('build.aliased', 'build.unaliased') AND NEW.created_at < (
        SELECT created_at FROM events
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND kind IN ('build.aliased', 'build.unaliased')
        ORDER BY id DESC LIMIT 1
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER events_of_build_aliases_in_order BEFORE INSERT ON events FOR EACH ROW
EXECUTE FUNCTION reccocktail_events_of_build_aliases_in_order('events are appended in the order of their time')

CREATE FUNCTION reccocktail_events_of_build_aliases_are_whole() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.kind IN ('build.aliased', 'build.unaliased') AND (
        coalesce(NEW.detail ->> 'alias', '') = '' OR NEW.base_id IS NULL OR NEW.domain_id IS NULL
        OR NEW.kind = 'build.unaliased' AND NOT EXISTS (
            SELECT 1 FROM build_aliases
            WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND name = NEW.detail ->> 'alias'
                AND build_id = NEW.subject
        )
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER events_of_build_aliases_are_whole BEFORE INSERT ON events FOR EACH ROW
EXECUTE FUNCTION reccocktail_events_of_build_aliases_are_whole('an event about an alias of builds says which, and where it is or was')

CREATE FUNCTION reccocktail_events_move_build_aliases() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.kind = 'build.unaliased' THEN
        DELETE FROM build_aliases
        WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND name = NEW.detail ->> 'alias';
    ELSIF NEW.kind = 'build.aliased' THEN
        INSERT INTO build_aliases (base_id, domain_id, name, build_id, event_id, created_at, created_by)
        VALUES (NEW.base_id, NEW.domain_id, NEW.detail ->> 'alias', NEW.subject, NEW.id, NEW.created_at, NEW.created_by)
        ON CONFLICT (base_id, domain_id, name)
        DO UPDATE SET build_id = excluded.build_id, event_id = excluded.event_id;
    END IF;
    RETURN NULL;
END
$$

CREATE TRIGGER events_move_build_aliases AFTER INSERT ON events FOR EACH ROW
EXECUTE FUNCTION reccocktail_events_move_build_aliases()

CREATE FUNCTION reccocktail_events_pin_builds() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.kind = 'build.unpinned' THEN
        DELETE FROM build_pins WHERE build_id = NEW.subject;
    ELSIF NEW.kind = 'build.pinned' THEN
        INSERT INTO build_pins (build_id, created_at, created_by) VALUES (NEW.subject, NEW.created_at, NEW.created_by);
    END IF;
    RETURN NULL;
END
$$

CREATE TRIGGER events_pin_builds AFTER INSERT ON events FOR EACH ROW
EXECUTE FUNCTION reccocktail_events_pin_builds()

CREATE TRIGGER approvals_never_change BEFORE UPDATE ON approvals FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an approval never changes')

CREATE TRIGGER approvals_stay BEFORE DELETE ON approvals FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an approval is never removed')

CREATE FUNCTION reccocktail_approvals_by_another() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM adapters WHERE id = NEW.adapter_id AND created_by = NEW.created_by)
        OR EXISTS (SELECT 1 FROM builds WHERE id = NEW.build_id AND created_by = NEW.created_by) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER approvals_by_another BEFORE INSERT ON approvals FOR EACH ROW
EXECUTE FUNCTION reccocktail_approvals_by_another('who registered or requested something does not approve it')

CREATE FUNCTION reccocktail_builds_begin_uncollected() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.collected_at IS NOT NULL THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER builds_begin_uncollected BEFORE INSERT ON builds FOR EACH ROW
EXECUTE FUNCTION reccocktail_builds_begin_uncollected('the result of a build goes by an event, which says when, and for good')

CREATE FUNCTION reccocktail_builds_collected_by_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF OLD.collected_at IS NOT NULL OR NEW.collected_at IS NULL OR NEW.collected_at IS DISTINCT FROM (
        SELECT created_at FROM events WHERE subject = NEW.id AND kind = 'build.collected' ORDER BY id DESC LIMIT 1
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER builds_collected_by_event BEFORE UPDATE OF collected_at ON builds FOR EACH ROW
EXECUTE FUNCTION reccocktail_builds_collected_by_event('the result of a build goes by an event, which says when, and for good')

CREATE FUNCTION reccocktail_events_collect_lawfully() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.kind = 'build.collected' AND (
        NOT EXISTS (
            SELECT 1 FROM builds WHERE id = NEW.subject AND status = 'succeeded' AND collected_at IS NULL
        )
        OR EXISTS (SELECT 1 FROM build_aliases WHERE build_id = NEW.subject)
        OR EXISTS (SELECT 1 FROM build_pins WHERE build_id = NEW.subject)
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER events_collect_lawfully BEFORE INSERT ON events FOR EACH ROW
EXECUTE FUNCTION reccocktail_events_collect_lawfully('only a succeeded build without an alias or a pin loses its result, once')

CREATE FUNCTION reccocktail_events_collect_builds() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.kind = 'build.collected' THEN
        UPDATE builds SET collected_at = NEW.created_at WHERE id = NEW.subject;
    END IF;
    RETURN NULL;
END
$$

CREATE TRIGGER events_collect_builds AFTER INSERT ON events FOR EACH ROW
EXECUTE FUNCTION reccocktail_events_collect_builds()

CREATE FUNCTION reccocktail_events_pass_gates() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.alias = 'champion'
        AND EXISTS (SELECT 1 FROM gates WHERE domain_id = NEW.domain_id)
        AND coalesce(NEW.detail ->> 'override', '') = ''
        AND (
            NEW.adapter_id IS NULL
            OR NEW.detail ->> 'gate' IS DISTINCT FROM (SELECT version::text FROM gates WHERE domain_id = NEW.domain_id)
            OR EXISTS (
                SELECT 1 FROM gates
                WHERE domain_id = NEW.domain_id AND requirement IS NOT NULL AND NOT EXISTS (
                    SELECT 1 FROM evaluations
                    JOIN adapters ON adapters.digest = evaluations.weights
                    JOIN base_models ON base_models.id = adapters.base_id AND base_models.digest = evaluations.on_base
                    WHERE adapters.id = NEW.adapter_id AND evaluations.id::text = NEW.detail ->> 'evaluation'
                        AND evaluations.split = gates.requirement ->> 'split'
                        AND (evaluations.domain_id = NEW.domain_id OR adapters.role = 'spirit')
                )
            )
            OR (SELECT approvals FROM gates WHERE domain_id = NEW.domain_id)
                > (SELECT count(*) FROM approvals WHERE adapter_id = NEW.adapter_id)
        ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER events_pass_gates BEFORE INSERT ON events FOR EACH ROW
EXECUTE FUNCTION reccocktail_events_pass_gates('champion moves through the gate of its domain: by an evaluation and approvals, or an override')

CREATE FUNCTION reccocktail_events_archive_through_gates() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.kind = 'adapter.archived' AND coalesce(NEW.detail ->> 'override', '') = ''
        AND EXISTS (SELECT 1 FROM gates WHERE domain_id = NEW.domain_id)
        AND EXISTS (
            SELECT 1 FROM aliases
            WHERE base_id = NEW.base_id AND domain_id = NEW.domain_id AND name = 'champion' AND adapter_id = NEW.adapter_id
        ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER events_archive_through_gates BEFORE INSERT ON events FOR EACH ROW
EXECUTE FUNCTION reccocktail_events_archive_through_gates('the champion of a domain with a gate is archived only with an override')

CREATE FUNCTION reccocktail_events_serve_through_gates() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.kind IN ('build.aliased', 'build.unaliased')
        AND EXISTS (SELECT 1 FROM gates WHERE domain_id = NEW.domain_id)
        AND NEW.detail ->> 'alias'
            = coalesce((SELECT alias FROM serving_policies WHERE domain_id = NEW.domain_id), 'production')
        AND coalesce(NEW.detail ->> 'override', '') = ''
        AND NOT (
            NEW.kind = 'build.aliased' AND coalesce(NEW.detail ->> 'rollback', '') = 'true' AND EXISTS (
                SELECT 1 FROM events
                WHERE subject = NEW.subject AND kind = 'build.aliased' AND base_id = NEW.base_id
                    AND domain_id = NEW.domain_id AND detail ->> 'alias' = NEW.detail ->> 'alias'
            )
        )
        AND (
            NEW.kind = 'build.unaliased'
            OR NEW.detail ->> 'gate' IS DISTINCT FROM (SELECT version::text FROM gates WHERE domain_id = NEW.domain_id)
            OR EXISTS (
                SELECT 1 FROM gates
                WHERE domain_id = NEW.domain_id AND requirement IS NOT NULL AND NOT EXISTS (
                    SELECT 1 FROM evaluations
                    JOIN builds ON builds.digest = evaluations.weights
                    JOIN base_models ON base_models.id = builds.base_id
                    WHERE builds.id = NEW.subject AND evaluations.id::text = NEW.detail ->> 'evaluation'
                        AND evaluations.on_base = CASE builds.recipe #>> '{output,format}'
                            WHEN 'adapter' THEN base_models.digest ELSE '' END
                        AND evaluations.split = gates.requirement ->> 'split'
                        AND evaluations.domain_id = NEW.domain_id
                )
            )
            OR (SELECT approvals FROM gates WHERE domain_id = NEW.domain_id)
                > (SELECT count(*) FROM approvals WHERE build_id = NEW.subject)
        ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER events_serve_through_gates BEFORE INSERT ON events FOR EACH ROW
EXECUTE FUNCTION reccocktail_events_serve_through_gates('what a domain serves moves through its gate: by an evaluation and approvals, or an override')

CREATE TRIGGER gates_stay_with_their_domain BEFORE UPDATE OF domain_id ON gates FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a gate stays with its domain')

CREATE TRIGGER gates_stay_all BEFORE TRUNCATE ON gates FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('a gate is set and removed by an event, and is what its newest event says')

CREATE TRIGGER approvals_stay_all BEFORE TRUNCATE ON approvals FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('an approval is never removed')

CREATE TRIGGER evaluations_stay_all BEFORE TRUNCATE ON evaluations FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('an evaluation is never removed')

CREATE FUNCTION reccocktail_gates_by_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM events
        WHERE id = (
                SELECT max(id) FROM events
                WHERE domain_id = NEW.domain_id AND kind IN ('domain.gated', 'domain.ungated')
            )
            AND kind = 'domain.gated' AND created_at = NEW.created_at AND created_by = NEW.created_by
            AND detail ->> 'approvals' = NEW.approvals::text
            AND coalesce((detail -> 'require')::jsonb, 'null') = coalesce(NEW.requirement::jsonb, 'null')
    ) OR NEW.version <> (SELECT count(*) FROM events WHERE domain_id = NEW.domain_id AND kind = 'domain.gated') THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER gates_by_event BEFORE INSERT OR UPDATE ON gates FOR EACH ROW
EXECUTE FUNCTION reccocktail_gates_by_event('a gate is set and removed by an event, and is what its newest event says')

CREATE FUNCTION reccocktail_gates_removed_by_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF coalesce((
        SELECT kind FROM events WHERE domain_id = OLD.domain_id AND kind IN ('domain.gated', 'domain.ungated')
        ORDER BY id DESC LIMIT 1
    ), '') <> 'domain.ungated' THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END
$$

CREATE TRIGGER gates_removed_by_event BEFORE DELETE ON gates FOR EACH ROW
EXECUTE FUNCTION reccocktail_gates_removed_by_event('a gate is set and removed by an event, and is what its newest event says')

CREATE TRIGGER serving_policies_stay BEFORE DELETE ON serving_policies FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('how a domain serves its builds is changed, and not removed')

CREATE TRIGGER serving_policies_stay_all BEFORE TRUNCATE ON serving_policies FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('how a domain serves its builds is changed, and not removed')

CREATE TRIGGER serving_policies_stay_with_their_domain BEFORE UPDATE OF domain_id ON serving_policies FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('how a domain serves its builds is changed, and not removed')

CREATE FUNCTION reccocktail_serving_policies_by_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.alias <> coalesce((
        SELECT detail ->> 'served.alias' FROM events
        WHERE domain_id = NEW.domain_id AND kind = 'domain.changed' AND detail ->> 'served.alias' IS NOT NULL
        ORDER BY id DESC LIMIT 1
    ), 'production') OR NEW.promote <> coalesce((
        SELECT detail ->> 'served.promote' FROM events
        WHERE domain_id = NEW.domain_id AND kind = 'domain.changed' AND detail ->> 'served.promote' IS NOT NULL
        ORDER BY id DESC LIMIT 1
    ), 'manual') THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER serving_policies_by_event BEFORE INSERT OR UPDATE ON serving_policies FOR EACH ROW
EXECUTE FUNCTION reccocktail_serving_policies_by_event('how a domain serves its builds is what its newest event says')

CREATE FUNCTION reccocktail_events_change_policies_through_gates() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.kind = 'domain.changed' AND coalesce(NEW.detail ->> 'override', '') = ''
        AND EXISTS (SELECT 1 FROM gates WHERE domain_id = NEW.domain_id)
        AND EXISTS (
            SELECT 1 FROM build_aliases
            WHERE domain_id = NEW.domain_id AND name IN (
                NEW.detail ->> 'served.alias',
                CASE WHEN NEW.detail ->> 'served.alias' IS NOT NULL
                    THEN coalesce((SELECT alias FROM serving_policies WHERE domain_id = NEW.domain_id), 'production') END
            )
        ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER events_change_policies_through_gates BEFORE INSERT ON events FOR EACH ROW
EXECUTE FUNCTION reccocktail_events_change_policies_through_gates('what a domain serves moves through its gate: by an evaluation and approvals, or an override')

CREATE FUNCTION reccocktail_adapters_spirit_is_plain() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.kind <> 'lora' AND NEW.role = 'spirit' THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER adapters_spirit_is_plain BEFORE INSERT ON adapters FOR EACH ROW
EXECUTE FUNCTION reccocktail_adapters_spirit_is_plain('adapters: a spirit is a plain LoRA')

CREATE FUNCTION reccocktail_aliases_champion_on_plain() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.name = 'champion' AND EXISTS (SELECT 1 FROM adapters WHERE id = NEW.adapter_id AND kind <> 'lora') THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER aliases_champion_on_plain BEFORE INSERT OR UPDATE ON aliases FOR EACH ROW
EXECUTE FUNCTION reccocktail_aliases_champion_on_plain('champion names what goes into mixes, and only a plain LoRA does')

CREATE FUNCTION reccocktail_build_inputs_fit_the_kind() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF (SELECT kind FROM adapters WHERE id = NEW.adapter_id) <> (
        SELECT CASE kind WHEN 'index' THEN 'bi-tuning' ELSE 'lora' END FROM builds WHERE id = NEW.build_id
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER build_inputs_fit_the_kind BEFORE INSERT ON build_inputs FOR EACH ROW
EXECUTE FUNCTION reccocktail_build_inputs_fit_the_kind('build_inputs: only plain LoRAs are mixed, and only a bi-tuning has an index')

CREATE FUNCTION reccocktail_build_inputs_of_one_index() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM builds WHERE id = NEW.build_id AND kind = 'index')
        AND EXISTS (SELECT 1 FROM build_inputs WHERE build_id = NEW.build_id) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER build_inputs_of_one_index BEFORE INSERT ON build_inputs FOR EACH ROW
EXECUTE FUNCTION reccocktail_build_inputs_of_one_index('build_inputs: an index is of one bi-tuning')

CREATE FUNCTION reccocktail_build_aliases_on_merges() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM builds WHERE id = NEW.build_id AND kind <> 'merge') THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER build_aliases_on_merges BEFORE INSERT OR UPDATE ON build_aliases FOR EACH ROW
EXECUTE FUNCTION reccocktail_build_aliases_on_merges('what a domain serves is a merge, and no index')

CREATE TRIGGER tokens_never_change BEFORE UPDATE OF id, name, digest, scopes, expires_at, event_id, created_at, created_by ON tokens FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a token keeps its name, its holder, its scopes and its end')

CREATE TRIGGER tokens_stay BEFORE DELETE ON tokens FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a token is revoked, and never removed')

CREATE TRIGGER tokens_stay_all BEFORE TRUNCATE ON tokens FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('a token is revoked, and never removed')

CREATE FUNCTION reccocktail_tokens_added_by_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.revoked_at IS NOT NULL OR NOT EXISTS (
        SELECT 1 FROM events WHERE id = NEW.event_id AND kind = 'token.added' AND subject = NEW.name
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER tokens_added_by_event BEFORE INSERT ON tokens FOR EACH ROW
EXECUTE FUNCTION reccocktail_tokens_added_by_event('a token is added by an event, which comes first')

CREATE FUNCTION reccocktail_tokens_revoked_by_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF OLD.revoked_at IS DISTINCT FROM NEW.revoked_at AND (
        OLD.revoked_at IS NOT NULL
        OR NOT EXISTS (
            SELECT 1 FROM events
            WHERE kind = 'token.revoked' AND subject = NEW.name AND id > NEW.event_id AND created_at = NEW.revoked_at
        )
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER tokens_revoked_by_event BEFORE UPDATE OF revoked_at ON tokens FOR EACH ROW
EXECUTE FUNCTION reccocktail_tokens_revoked_by_event('a token is revoked once, by an event, which comes first')

CREATE TRIGGER build_requests_never_change BEFORE UPDATE ON build_requests FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a request keeps its answer')

CREATE TRIGGER build_requests_stay BEFORE DELETE ON build_requests FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a request keeps its answer')

CREATE TRIGGER build_requests_stay_all BEFORE TRUNCATE ON build_requests FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('a request keeps its answer')

CREATE FUNCTION reccocktail_events_wake_webhooks() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    said text := CASE NEW.kind
        WHEN 'alias.set' THEN 'alias.moved' WHEN 'alias.removed' THEN 'alias.moved'
        WHEN 'build.aliased' THEN 'alias.moved' WHEN 'build.unaliased' THEN 'alias.moved'
        WHEN 'adapter.published' THEN 'publication.made' WHEN 'build.published' THEN 'publication.made'
        ELSE NEW.kind END;
    wanting bigint[];
BEGIN
    IF NEW.domain_id IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(webhooks.id ORDER BY webhooks.id) INTO wanting FROM webhooks
    WHERE webhooks.active
        AND said IN (SELECT value FROM json_array_elements_text(webhooks.kinds))
        AND (json_array_length(webhooks.domains) = 0
            OR NEW.domain_id::text IN (SELECT value FROM json_array_elements_text(webhooks.domains)));
    IF wanting IS NULL THEN
        RETURN NULL;
    END IF;
    -- until this transaction ends no other writes of the same domain and kind: rows are numbered as they become visible
    PERFORM pg_advisory_xact_lock(hashtextextended('reccocktail webhooks ' || NEW.domain_id || ' ' || said, 0));
    INSERT INTO webhook_deliveries (webhook_id, event_id, kind, domain_id, status, attempts, created_at)
    SELECT id, NEW.id, said, NEW.domain_id, 'pending', 0, NEW.created_at FROM unnest(wanting) AS id;
    RETURN NULL;
END
$$

CREATE TRIGGER events_wake_webhooks AFTER INSERT ON events FOR EACH ROW
EXECUTE FUNCTION reccocktail_events_wake_webhooks()

CREATE TRIGGER webhooks_never_change BEFORE UPDATE OF id, name, created_at, created_by ON webhooks FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a webhook keeps its name')

CREATE TRIGGER webhook_deliveries_never_change BEFORE UPDATE OF id, webhook_id, event_id, kind, domain_id, created_at ON webhook_deliveries FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a delivery keeps its event and its webhook')

CREATE TRIGGER webhook_attempts_never_change BEFORE UPDATE ON webhook_attempts FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an attempt to deliver never changes')

CREATE TRIGGER webhooks_stay_all BEFORE TRUNCATE ON webhooks FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('webhooks are removed one by one')

CREATE TRIGGER webhook_deliveries_stay_all BEFORE TRUNCATE ON webhook_deliveries FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('a delivery goes only with its webhook')

CREATE TRIGGER webhook_attempts_stay_all BEFORE TRUNCATE ON webhook_attempts FOR EACH STATEMENT
EXECUTE FUNCTION reccocktail_refuse('a delivery goes only with its webhook')

CREATE FUNCTION reccocktail_webhook_deliveries_stay() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM webhooks WHERE id = OLD.webhook_id) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END
$$

CREATE TRIGGER webhook_deliveries_stay BEFORE DELETE ON webhook_deliveries FOR EACH ROW
EXECUTE FUNCTION reccocktail_webhook_deliveries_stay('a delivery goes only with its webhook')

CREATE FUNCTION reccocktail_webhook_attempts_stay() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM webhook_deliveries WHERE id = OLD.delivery_id) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END
$$

CREATE TRIGGER webhook_attempts_stay BEFORE DELETE ON webhook_attempts FOR EACH ROW
EXECUTE FUNCTION reccocktail_webhook_attempts_stay('a delivery goes only with its webhook')

CREATE FUNCTION reccocktail_webhook_deliveries_begin_pending() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.status <> 'pending' OR NEW.attempts <> 0
        OR NOT EXISTS (SELECT 1 FROM events WHERE id = NEW.event_id AND domain_id = NEW.domain_id) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER webhook_deliveries_begin_pending BEFORE INSERT ON webhook_deliveries FOR EACH ROW
EXECUTE FUNCTION reccocktail_webhook_deliveries_begin_pending('a delivery begins as pending, of an event of its domain')

CREATE FUNCTION reccocktail_webhook_deliveries_end_by_attempt() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.status = 'delivered' AND OLD.status <> 'delivered' AND NOT EXISTS (
        SELECT 1 FROM webhook_attempts WHERE delivery_id = NEW.id AND status_code BETWEEN 200 AND 299
    )
    OR NEW.status = 'dead' AND OLD.status <> 'dead' AND NOT EXISTS (
        SELECT 1 FROM webhook_attempts WHERE delivery_id = NEW.id
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER webhook_deliveries_end_by_attempt BEFORE UPDATE OF status ON webhook_deliveries FOR EACH ROW
EXECUTE FUNCTION reccocktail_webhook_deliveries_end_by_attempt('a delivery ends by an attempt, which comes first')
