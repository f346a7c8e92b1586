-- The rules that keys and checks cannot express, for PostgreSQL. Statements are separated by empty lines.
-- A migration that changes a rule brings a whole new set under its own number; this one stays as it was released.

CREATE FUNCTION reccocktail_refuse() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
END
$$

CREATE TRIGGER base_models_never_change BEFORE UPDATE ON base_models FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a base model never changes')

CREATE TRIGGER domains_never_change BEFORE UPDATE OF id, name, role, created_at, created_by ON domains FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('a domain keeps its name and role')

CREATE TRIGGER adapters_never_change BEFORE UPDATE OF id, base_id, domain_id, role, version, digest, rank, alpha, target_modules, tensors, bytes, metrics, tags, note, context, created_at, created_by ON adapters FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an adapter version never changes')

CREATE TRIGGER adapter_tags_never_change BEFORE UPDATE ON adapter_tags FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an adapter version never changes')

CREATE TRIGGER adapter_metrics_never_change BEFORE UPDATE ON adapter_metrics FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an adapter version never changes')

CREATE TRIGGER adapter_words_never_change BEFORE UPDATE ON adapter_words FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an adapter version never changes')

CREATE TRIGGER aliases_never_change BEFORE UPDATE OF base_id, domain_id, name, created_at, created_by ON aliases FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an alias keeps its name and place')

CREATE TRIGGER builds_never_change BEFORE UPDATE OF id, base_id, domain_id, key, recipe, inputs, created_at, created_by ON builds FOR EACH ROW
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

CREATE TRIGGER adapter_tags_stay BEFORE DELETE ON adapter_tags FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an adapter version never changes')

CREATE TRIGGER adapter_metrics_stay BEFORE DELETE ON adapter_metrics FOR EACH ROW
EXECUTE FUNCTION reccocktail_refuse('an adapter version never changes')

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

CREATE FUNCTION reccocktail_adapter_tags_as_registered() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM adapters, json_array_elements_text(adapters.tags) AS given
        WHERE adapters.id = NEW.adapter_id AND given.value = NEW.tag
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER adapter_tags_as_registered BEFORE INSERT ON adapter_tags FOR EACH ROW
EXECUTE FUNCTION reccocktail_adapter_tags_as_registered('an adapter version never changes')

CREATE FUNCTION reccocktail_adapter_metrics_as_registered() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM adapters, json_each_text(adapters.metrics) AS given
        WHERE adapters.id = NEW.adapter_id AND given.key = NEW.name AND given.value::double precision = NEW.value
    ) THEN
        RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$

CREATE TRIGGER adapter_metrics_as_registered BEFORE INSERT ON adapter_metrics FOR EACH ROW
EXECUTE FUNCTION reccocktail_adapter_metrics_as_registered('an adapter version never changes')

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
