
SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';

SET default_table_access_method = heap;

CREATE TABLE public.adapters (
    id bigint NOT NULL,
    base_id bigint NOT NULL,
    domain_id bigint NOT NULL,
    role character varying NOT NULL,
    version bigint NOT NULL,
    digest character varying NOT NULL,
    rank bigint NOT NULL,
    alpha double precision NOT NULL,
    target_modules json NOT NULL,
    tensors bigint NOT NULL,
    bytes bigint NOT NULL,
    metrics json NOT NULL,
    tags json NOT NULL,
    note character varying,
    context json NOT NULL,
    is_current boolean NOT NULL,
    archived_at timestamp with time zone,
    created_at timestamp with time zone NOT NULL,
    created_by character varying NOT NULL,
    CONSTRAINT ck_adapters_current CHECK (((NOT is_current) OR (((role)::text = 'spirit'::text) AND (archived_at IS NULL)))),
    CONSTRAINT ck_adapters_version CHECK ((version > 0))
);

CREATE SEQUENCE public.adapters_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.adapters_id_seq OWNED BY public.adapters.id;

CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);

CREATE TABLE public.aliases (
    base_id bigint NOT NULL,
    domain_id bigint NOT NULL,
    name character varying NOT NULL,
    adapter_id bigint NOT NULL,
    created_at timestamp with time zone NOT NULL,
    created_by character varying NOT NULL
);

CREATE TABLE public.base_models (
    id bigint NOT NULL,
    name character varying NOT NULL,
    source character varying NOT NULL,
    revision character varying,
    digest character varying NOT NULL,
    architecture character varying NOT NULL,
    dtype character varying NOT NULL,
    parameters bigint NOT NULL,
    bytes bigint NOT NULL,
    created_at timestamp with time zone NOT NULL,
    created_by character varying NOT NULL
);

CREATE SEQUENCE public.base_models_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.base_models_id_seq OWNED BY public.base_models.id;

CREATE TABLE public.build_inputs (
    build_id character varying NOT NULL,
    adapter_id bigint NOT NULL,
    created_at timestamp with time zone NOT NULL,
    created_by character varying NOT NULL
);

CREATE TABLE public.builds (
    id character varying NOT NULL,
    base_id bigint NOT NULL,
    domain_id bigint NOT NULL,
    status character varying NOT NULL,
    key character varying NOT NULL,
    recipe json NOT NULL,
    inputs json NOT NULL,
    digest character varying,
    coefficients json,
    report json,
    error json,
    done bigint NOT NULL,
    total bigint NOT NULL,
    attempts bigint NOT NULL,
    worker character varying,
    lease_until timestamp with time zone,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    created_at timestamp with time zone NOT NULL,
    created_by character varying NOT NULL,
    CONSTRAINT ck_builds_digest CHECK ((((status)::text = 'succeeded'::text) = (digest IS NOT NULL))),
    CONSTRAINT ck_builds_lease CHECK ((((status)::text = 'running'::text) = (lease_until IS NOT NULL))),
    CONSTRAINT ck_builds_status CHECK (((status)::text = ANY ((ARRAY['queued'::character varying, 'running'::character varying, 'succeeded'::character varying, 'failed'::character varying, 'cancelled'::character varying])::text[])))
);

CREATE TABLE public.domains (
    id bigint NOT NULL,
    name character varying NOT NULL,
    role character varying NOT NULL,
    title character varying NOT NULL,
    data character varying,
    trainer character varying,
    recipe character varying,
    created_at timestamp with time zone NOT NULL,
    created_by character varying NOT NULL,
    CONSTRAINT ck_domains_role CHECK (((role)::text = ANY ((ARRAY['spirit'::character varying, 'ingredient'::character varying])::text[]))),
    CONSTRAINT ck_domains_spirit CHECK ((((name)::text = 'spirit'::text) = ((role)::text = 'spirit'::text)))
);

CREATE SEQUENCE public.domains_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.domains_id_seq OWNED BY public.domains.id;

CREATE TABLE public.events (
    id bigint NOT NULL,
    kind character varying NOT NULL,
    subject character varying NOT NULL,
    detail json NOT NULL,
    created_at timestamp with time zone NOT NULL,
    created_by character varying NOT NULL
);

CREATE SEQUENCE public.events_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.events_id_seq OWNED BY public.events.id;

CREATE TABLE public.publications (
    id bigint NOT NULL,
    build_id character varying NOT NULL,
    repo character varying NOT NULL,
    revision character varying NOT NULL,
    tag character varying,
    created_at timestamp with time zone NOT NULL,
    created_by character varying NOT NULL
);

CREATE SEQUENCE public.publications_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.publications_id_seq OWNED BY public.publications.id;

ALTER TABLE ONLY public.adapters ALTER COLUMN id SET DEFAULT nextval('public.adapters_id_seq'::regclass);

ALTER TABLE ONLY public.base_models ALTER COLUMN id SET DEFAULT nextval('public.base_models_id_seq'::regclass);

ALTER TABLE ONLY public.domains ALTER COLUMN id SET DEFAULT nextval('public.domains_id_seq'::regclass);

ALTER TABLE ONLY public.events ALTER COLUMN id SET DEFAULT nextval('public.events_id_seq'::regclass);

ALTER TABLE ONLY public.publications ALTER COLUMN id SET DEFAULT nextval('public.publications_id_seq'::regclass);

INSERT INTO public.adapters VALUES (3, 2, 1, 'spirit', 1, 'sha256:45b93783c6e5033be21d39a887cf0d6a100d63e764de364ec336bc1a9f69d258', 2, 4, '["q_proj", "v_proj"]', 8, 448, '{}', '[]', NULL, '{}', true, NULL, '2026-11-22 05:10:50.964821+00', 'ann');
INSERT INTO public.adapters VALUES (5, 1, 2, 'ingredient', 2, 'sha256:3c976d1d89462e43e87a7180ff1cacdcaddbc831b00c4a757bdf2dea440618ed', 2, 4, '["q_proj", "v_proj"]', 8, 448, '{"HR@1": 0.5}', '[]', NULL, '{}', false, NULL, '2026-11-22 05:10:50.982883+00', 'ann');
INSERT INTO public.adapters VALUES (6, 1, 2, 'ingredient', 3, 'sha256:abe7982010730f4a46f55ce77d09b64605686f0d63756e6b78fee2cd315a8b89', 2, 4, '["q_proj", "v_proj"]', 8, 448, '{}', '[]', NULL, '{}', false, NULL, '2026-11-22 05:10:50.990635+00', 'ann');
INSERT INTO public.adapters VALUES (7, 1, 3, 'ingredient', 1, 'sha256:8d7b56f8042300ef9b5c10e5e76605c9484ab33037c100115afdce1034bc71c3', 2, 4, '["q_proj", "v_proj"]', 8, 448, '{}', '[]', NULL, '{}', false, NULL, '2026-11-22 05:10:50.99861+00', 'ann');
INSERT INTO public.adapters VALUES (2, 1, 1, 'spirit', 2, 'sha256:4ba56b8f34982a531adb5a3e8cd5346d2d212354ddd525f4c1b0635c1e8fb9ed', 2, 4, '["q_proj", "v_proj"]', 8, 448, '{}', '["general"]', NULL, '{}', false, NULL, '2026-11-22 05:10:50.953392+00', 'ann');
INSERT INTO public.adapters VALUES (1, 1, 1, 'spirit', 1, 'sha256:45b93783c6e5033be21d39a887cf0d6a100d63e764de364ec336bc1a9f69d258', 2, 4, '["q_proj", "v_proj"]', 8, 448, '{}', '[]', NULL, '{}', true, NULL, '2026-11-22 05:10:50.93376+00', 'ann');
INSERT INTO public.adapters VALUES (4, 1, 2, 'ingredient', 1, 'sha256:8d7b56f8042300ef9b5c10e5e76605c9484ab33037c100115afdce1034bc71c3', 2, 4, '["q_proj", "v_proj"]', 8, 448, '{"HR@1": 0.25, "NDCG@3": 0.5}', '["nightly", "2026-10"]', 'first try, Größe 8', '{"trainer": "sft", "data": {"beauty": "sha256:dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"}}', false, '2026-11-22 05:10:51.027329+00', '2026-11-22 05:10:50.975355+00', 'ann');

INSERT INTO public.alembic_version VALUES ('0001');

INSERT INTO public.aliases VALUES (1, 2, 'champion', 5, '2026-11-22 05:10:51.006182+00', 'ann');
INSERT INTO public.aliases VALUES (1, 2, 'candidate', 6, '2026-11-22 05:10:51.017472+00', 'ann');
INSERT INTO public.aliases VALUES (1, 1, 'champion', 1, '2026-11-22 05:10:51.021391+00', 'ann');

INSERT INTO public.base_models VALUES (1, 'tiny', 'org/tiny', 'c0ffee', 'sha256:ef6597128a9eea7f6148431d860a8de47cb11487d1ea8fbfa4567d4c606e31e1', 'LlamaForCausalLM', 'F32', 352, 1408, '2026-11-22 05:10:50.910228+00', 'ann');
INSERT INTO public.base_models VALUES (2, 'other', 'org/other', NULL, 'sha256:bf01954dca97f44cdd256bfb269639ef556aa398d2317332d9bb9936d5abc79b', 'LlamaForCausalLM', 'F32', 352, 1408, '2026-11-22 05:10:50.917184+00', 'ann');

INSERT INTO public.build_inputs VALUES ('660d6803d5d996ce', 1, '2026-11-22 05:10:51.042872+00', 'ann');
INSERT INTO public.build_inputs VALUES ('660d6803d5d996ce', 5, '2026-11-22 05:10:51.042874+00', 'ann');
INSERT INTO public.build_inputs VALUES ('660d6803dd694443', 1, '2026-11-22 05:10:51.072461+00', 'ann');
INSERT INTO public.build_inputs VALUES ('660d6803dd694443', 5, '2026-11-22 05:10:51.072463+00', 'ann');
INSERT INTO public.build_inputs VALUES ('660d6803e17cb50c', 1, '2026-11-22 05:10:51.089361+00', 'ann');
INSERT INTO public.build_inputs VALUES ('660d6803e17cb50c', 7, '2026-11-22 05:10:51.089364+00', 'ann');
INSERT INTO public.build_inputs VALUES ('660d6803e56de12d', 1, '2026-11-22 05:10:51.105339+00', 'ann');
INSERT INTO public.build_inputs VALUES ('660d6803e56de12d', 5, '2026-11-22 05:10:51.105341+00', 'ann');
INSERT INTO public.build_inputs VALUES ('660d6803e811bc07', 1, '2026-11-22 05:10:51.116032+00', 'ann');
INSERT INTO public.build_inputs VALUES ('660d6803e811bc07', 7, '2026-11-22 05:10:51.116034+00', 'ann');

INSERT INTO public.builds VALUES ('660d6803d5d996ce', 1, 2, 'succeeded', 'k1', '{"method": "linear"}', '{"base": {"name": "tiny", "digest": "sha256:ef6597128a9eea7f6148431d860a8de47cb11487d1ea8fbfa4567d4c606e31e1"}, "adapters": [{"role": "spirit", "ref": "spirit@v1", "digest": "sha256:45b93783c6e5033be21d39a887cf0d6a100d63e764de364ec336bc1a9f69d258"}, {"role": "ingredient", "ref": "beauty@v2", "digest": "sha256:3c976d1d89462e43e87a7180ff1cacdcaddbc831b00c4a757bdf2dea440618ed"}]}', 'sha256:3211eda544fb5a07b6f62bbcdb1608060e00e663fe081f8cb8a2e4df7badaf08', '{"spirit": 0.5, "ingredient": 0.5}', '{"seconds": 1.0}', NULL, 0, 0, 1, 'w', NULL, '2026-11-22 05:10:51.045411+00', '2026-11-22 05:10:51.056429+00', '2026-11-22 05:10:51.038331+00', 'ann');
INSERT INTO public.builds VALUES ('660d6803dd694443', 1, 2, 'failed', 'k2', '{"method": "linear"}', '{"base": {"name": "tiny", "digest": "sha256:ef6597128a9eea7f6148431d860a8de47cb11487d1ea8fbfa4567d4c606e31e1"}, "adapters": [{"role": "spirit", "ref": "spirit@v1", "digest": "sha256:45b93783c6e5033be21d39a887cf0d6a100d63e764de364ec336bc1a9f69d258"}, {"role": "ingredient", "ref": "beauty@v2", "digest": "sha256:3c976d1d89462e43e87a7180ff1cacdcaddbc831b00c4a757bdf2dea440618ed"}]}', NULL, NULL, NULL, '{"code": "x", "message": "broke"}', 0, 0, 1, 'w', NULL, '2026-11-22 05:10:51.073986+00', '2026-11-22 05:10:51.07666+00', '2026-11-22 05:10:51.068818+00', 'ann');
INSERT INTO public.builds VALUES ('660d6803e17cb50c', 1, 3, 'cancelled', 'k3', '{"method": "linear"}', '{"base": {"name": "tiny", "digest": "sha256:ef6597128a9eea7f6148431d860a8de47cb11487d1ea8fbfa4567d4c606e31e1"}, "adapters": [{"role": "spirit", "ref": "spirit@v1", "digest": "sha256:45b93783c6e5033be21d39a887cf0d6a100d63e764de364ec336bc1a9f69d258"}, {"role": "ingredient", "ref": "toys@v1", "digest": "sha256:8d7b56f8042300ef9b5c10e5e76605c9484ab33037c100115afdce1034bc71c3"}]}', NULL, NULL, NULL, NULL, 0, 0, 0, NULL, NULL, NULL, '2026-11-22 05:10:51.094067+00', '2026-11-22 05:10:51.085542+00', 'ann');
INSERT INTO public.builds VALUES ('660d6803e56de12d', 1, 2, 'queued', 'k4', '{"method": "linear"}', '{"base": {"name": "tiny", "digest": "sha256:ef6597128a9eea7f6148431d860a8de47cb11487d1ea8fbfa4567d4c606e31e1"}, "adapters": [{"role": "spirit", "ref": "spirit@v1", "digest": "sha256:45b93783c6e5033be21d39a887cf0d6a100d63e764de364ec336bc1a9f69d258"}, {"role": "ingredient", "ref": "beauty@v2", "digest": "sha256:3c976d1d89462e43e87a7180ff1cacdcaddbc831b00c4a757bdf2dea440618ed"}]}', NULL, NULL, NULL, NULL, 0, 0, 0, NULL, NULL, NULL, NULL, '2026-11-22 05:10:51.101637+00', 'ann');
INSERT INTO public.builds VALUES ('660d6803e811bc07', 1, 3, 'running', 'k5', '{"method": "linear"}', '{"base": {"name": "tiny", "digest": "sha256:ef6597128a9eea7f6148431d860a8de47cb11487d1ea8fbfa4567d4c606e31e1"}, "adapters": [{"role": "spirit", "ref": "spirit@v1", "digest": "sha256:45b93783c6e5033be21d39a887cf0d6a100d63e764de364ec336bc1a9f69d258"}, {"role": "ingredient", "ref": "toys@v1", "digest": "sha256:8d7b56f8042300ef9b5c10e5e76605c9484ab33037c100115afdce1034bc71c3"}]}', NULL, NULL, NULL, NULL, 0, 0, 1, 'w2', '2026-11-22 05:11:51.117387+00', '2026-11-22 05:10:51.117387+00', NULL, '2026-11-22 05:10:51.112469+00', 'ann');

INSERT INTO public.domains VALUES (1, 'spirit', 'spirit', 'Base spirit', NULL, NULL, NULL, '2026-11-22 05:10:50.882585+00', 'reccocktail');
INSERT INTO public.domains VALUES (2, 'beauty', 'ingredient', 'Beauty', '/data/beauty', NULL, 'average', '2026-11-22 05:10:50.91955+00', 'ann');
INSERT INTO public.domains VALUES (3, 'toys', 'ingredient', 'toys', NULL, NULL, NULL, '2026-11-22 05:10:50.921309+00', 'ann');

INSERT INTO public.events VALUES (1, 'base.added', 'tiny', '{"digest": "sha256:ef6597128a9eea7f6148431d860a8de47cb11487d1ea8fbfa4567d4c606e31e1", "source": "org/tiny", "revision": "c0ffee"}', '2026-11-22 05:10:50.911022+00', 'ann');
INSERT INTO public.events VALUES (2, 'base.added', 'other', '{"digest": "sha256:bf01954dca97f44cdd256bfb269639ef556aa398d2317332d9bb9936d5abc79b", "source": "org/other", "revision": null}', '2026-11-22 05:10:50.917463+00', 'ann');
INSERT INTO public.events VALUES (3, 'domain.added', 'beauty', '{"title": "Beauty", "data": "/data/beauty", "recipe": "average"}', '2026-11-22 05:10:50.920241+00', 'ann');
INSERT INTO public.events VALUES (4, 'domain.added', 'toys', '{}', '2026-11-22 05:10:50.921537+00', 'ann');
INSERT INTO public.events VALUES (5, 'adapter.added', 'spirit@v1', '{"base": "tiny", "digest": "sha256:45b93783c6e5033be21d39a887cf0d6a100d63e764de364ec336bc1a9f69d258"}', '2026-11-22 05:10:50.937079+00', 'ann');
INSERT INTO public.events VALUES (6, 'adapter.added', 'spirit@v2', '{"base": "tiny", "digest": "sha256:4ba56b8f34982a531adb5a3e8cd5346d2d212354ddd525f4c1b0635c1e8fb9ed"}', '2026-11-22 05:10:50.955147+00', 'ann');
INSERT INTO public.events VALUES (7, 'adapter.added', 'spirit@v1', '{"base": "other", "digest": "sha256:45b93783c6e5033be21d39a887cf0d6a100d63e764de364ec336bc1a9f69d258"}', '2026-11-22 05:10:50.966394+00', 'ann');
INSERT INTO public.events VALUES (8, 'adapter.added', 'beauty@v1', '{"base": "tiny", "digest": "sha256:8d7b56f8042300ef9b5c10e5e76605c9484ab33037c100115afdce1034bc71c3"}', '2026-11-22 05:10:50.976799+00', 'ann');
INSERT INTO public.events VALUES (9, 'adapter.added', 'beauty@v2', '{"base": "tiny", "digest": "sha256:3c976d1d89462e43e87a7180ff1cacdcaddbc831b00c4a757bdf2dea440618ed"}', '2026-11-22 05:10:50.984276+00', 'ann');
INSERT INTO public.events VALUES (10, 'adapter.added', 'beauty@v3', '{"base": "tiny", "digest": "sha256:abe7982010730f4a46f55ce77d09b64605686f0d63756e6b78fee2cd315a8b89"}', '2026-11-22 05:10:50.992093+00', 'ann');
INSERT INTO public.events VALUES (11, 'adapter.added', 'toys@v1', '{"base": "tiny", "digest": "sha256:8d7b56f8042300ef9b5c10e5e76605c9484ab33037c100115afdce1034bc71c3"}', '2026-11-22 05:10:51.000185+00', 'ann');
INSERT INTO public.events VALUES (12, 'alias.set', 'beauty@champion', '{"base": "tiny", "to": "beauty@v1"}', '2026-11-22 05:10:51.006623+00', 'ann');
INSERT INTO public.events VALUES (13, 'alias.moved', 'beauty@champion', '{"base": "tiny", "from": "beauty@v1", "to": "beauty@v2"}', '2026-11-22 05:10:51.014033+00', 'ann');
INSERT INTO public.events VALUES (14, 'alias.set', 'beauty@candidate', '{"base": "tiny", "to": "beauty@v3"}', '2026-11-22 05:10:51.017743+00', 'ann');
INSERT INTO public.events VALUES (15, 'alias.set', 'spirit@champion', '{"base": "tiny", "to": "spirit@v1"}', '2026-11-22 05:10:51.021647+00', 'ann');
INSERT INTO public.events VALUES (16, 'adapter.archived', 'beauty@v1', '{"base": "tiny"}', '2026-11-22 05:10:51.027613+00', 'ann');
INSERT INTO public.events VALUES (17, 'build.queued', '660d6803d5d996ce', '{"domain": "beauty", "key": "k1"}', '2026-11-22 05:10:51.043587+00', 'ann');
INSERT INTO public.events VALUES (18, 'build.running', '660d6803d5d996ce', '{"domain": "beauty", "worker": "w"}', '2026-11-22 05:10:51.049819+00', 'ann');
INSERT INTO public.events VALUES (19, 'build.succeeded', '660d6803d5d996ce', '{"domain": "beauty", "digest": "sha256:3211eda544fb5a07b6f62bbcdb1608060e00e663fe081f8cb8a2e4df7badaf08"}', '2026-11-22 05:10:51.057685+00', 'ann');
INSERT INTO public.events VALUES (20, 'build.published', '660d6803d5d996ce', '{"repo": "acme/beauty", "revision": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "tag": "v1"}', '2026-11-22 05:10:51.058467+00', 'ann');
INSERT INTO public.events VALUES (21, 'build.queued', '660d6803dd694443', '{"domain": "beauty", "key": "k2"}', '2026-11-22 05:10:51.07291+00', 'ann');
INSERT INTO public.events VALUES (22, 'build.running', '660d6803dd694443', '{"domain": "beauty", "worker": "w"}', '2026-11-22 05:10:51.075589+00', 'ann');
INSERT INTO public.events VALUES (23, 'build.failed', '660d6803dd694443', '{"domain": "beauty", "error": {"code": "x", "message": "broke"}}', '2026-11-22 05:10:51.077578+00', 'ann');
INSERT INTO public.events VALUES (24, 'build.queued', '660d6803e17cb50c', '{"domain": "toys", "key": "k3"}', '2026-11-22 05:10:51.089833+00', 'ann');
INSERT INTO public.events VALUES (25, 'build.cancelled', '660d6803e17cb50c', '{"domain": "toys"}', '2026-11-22 05:10:51.094998+00', 'ann');
INSERT INTO public.events VALUES (26, 'build.queued', '660d6803e56de12d', '{"domain": "beauty", "key": "k4"}', '2026-11-22 05:10:51.105684+00', 'ann');
INSERT INTO public.events VALUES (27, 'build.queued', '660d6803e811bc07', '{"domain": "toys", "key": "k5"}', '2026-11-22 05:10:51.116361+00', 'ann');
INSERT INTO public.events VALUES (28, 'build.running', '660d6803e811bc07', '{"domain": "toys", "worker": "w2"}', '2026-11-22 05:10:51.118982+00', 'ann');

INSERT INTO public.publications VALUES (1, '660d6803d5d996ce', 'acme/beauty', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'v1', '2026-11-22 05:10:51.058962+00', 'ann');

SELECT pg_catalog.setval('public.adapters_id_seq', 7, true);

SELECT pg_catalog.setval('public.base_models_id_seq', 2, true);

SELECT pg_catalog.setval('public.domains_id_seq', 3, true);

SELECT pg_catalog.setval('public.events_id_seq', 28, true);

SELECT pg_catalog.setval('public.publications_id_seq', 1, true);

ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);

ALTER TABLE ONLY public.adapters
    ADD CONSTRAINT pk_adapters PRIMARY KEY (id);

ALTER TABLE ONLY public.aliases
    ADD CONSTRAINT pk_aliases PRIMARY KEY (base_id, domain_id, name);

ALTER TABLE ONLY public.base_models
    ADD CONSTRAINT pk_base_models PRIMARY KEY (id);

ALTER TABLE ONLY public.build_inputs
    ADD CONSTRAINT pk_build_inputs PRIMARY KEY (build_id, adapter_id);

ALTER TABLE ONLY public.builds
    ADD CONSTRAINT pk_builds PRIMARY KEY (id);

ALTER TABLE ONLY public.domains
    ADD CONSTRAINT pk_domains PRIMARY KEY (id);

ALTER TABLE ONLY public.events
    ADD CONSTRAINT pk_events PRIMARY KEY (id);

ALTER TABLE ONLY public.publications
    ADD CONSTRAINT pk_publications PRIMARY KEY (id);

ALTER TABLE ONLY public.adapters
    ADD CONSTRAINT uq_adapters_base_id_domain_id_digest UNIQUE (base_id, domain_id, digest);

ALTER TABLE ONLY public.adapters
    ADD CONSTRAINT uq_adapters_base_id_domain_id_id UNIQUE (base_id, domain_id, id);

ALTER TABLE ONLY public.adapters
    ADD CONSTRAINT uq_adapters_base_id_domain_id_version UNIQUE (base_id, domain_id, version);

ALTER TABLE ONLY public.base_models
    ADD CONSTRAINT uq_base_models_name UNIQUE (name);

ALTER TABLE ONLY public.domains
    ADD CONSTRAINT uq_domains_id_role UNIQUE (id, role);

ALTER TABLE ONLY public.domains
    ADD CONSTRAINT uq_domains_name UNIQUE (name);

CREATE INDEX ix_builds_key ON public.builds USING btree (key);

CREATE INDEX ix_events_subject ON public.events USING btree (subject);

CREATE UNIQUE INDEX uq_adapters_current_spirit ON public.adapters USING btree (base_id) WHERE is_current;

CREATE UNIQUE INDEX uq_builds_open_key ON public.builds USING btree (key) WHERE ((status)::text = ANY ((ARRAY['queued'::character varying, 'running'::character varying])::text[]));

ALTER TABLE ONLY public.adapters
    ADD CONSTRAINT fk_adapters_base_id_base_models FOREIGN KEY (base_id) REFERENCES public.base_models(id);

ALTER TABLE ONLY public.adapters
    ADD CONSTRAINT fk_adapters_domain_id_role_domains FOREIGN KEY (domain_id, role) REFERENCES public.domains(id, role);

ALTER TABLE ONLY public.aliases
    ADD CONSTRAINT fk_aliases_base_id_domain_id_adapter_id_adapters FOREIGN KEY (base_id, domain_id, adapter_id) REFERENCES public.adapters(base_id, domain_id, id);

ALTER TABLE ONLY public.build_inputs
    ADD CONSTRAINT fk_build_inputs_adapter_id_adapters FOREIGN KEY (adapter_id) REFERENCES public.adapters(id);

ALTER TABLE ONLY public.build_inputs
    ADD CONSTRAINT fk_build_inputs_build_id_builds FOREIGN KEY (build_id) REFERENCES public.builds(id);

ALTER TABLE ONLY public.builds
    ADD CONSTRAINT fk_builds_base_id_base_models FOREIGN KEY (base_id) REFERENCES public.base_models(id);

ALTER TABLE ONLY public.builds
    ADD CONSTRAINT fk_builds_domain_id_domains FOREIGN KEY (domain_id) REFERENCES public.domains(id);

ALTER TABLE ONLY public.publications
    ADD CONSTRAINT fk_publications_build_id_builds FOREIGN KEY (build_id) REFERENCES public.builds(id);

