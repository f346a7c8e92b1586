BEGIN TRANSACTION;
CREATE TABLE adapters (
	id INTEGER NOT NULL, 
	base_id INTEGER NOT NULL, 
	domain_id BIGINT NOT NULL, 
	role VARCHAR NOT NULL, 
	version BIGINT NOT NULL, 
	digest VARCHAR NOT NULL, 
	rank BIGINT NOT NULL, 
	alpha DOUBLE NOT NULL, 
	target_modules JSON NOT NULL, 
	tensors BIGINT NOT NULL, 
	bytes BIGINT NOT NULL, 
	metrics JSON NOT NULL, 
	tags JSON NOT NULL, 
	note VARCHAR, 
	context JSON NOT NULL, 
	is_current BOOLEAN NOT NULL, 
	archived_at DATETIME, 
	created_at DATETIME NOT NULL, 
	created_by VARCHAR NOT NULL, 
	CONSTRAINT pk_adapters PRIMARY KEY (id), 
	CONSTRAINT ck_adapters_current CHECK (NOT is_current OR (role = 'spirit' AND archived_at IS NULL)), 
	CONSTRAINT ck_adapters_version CHECK (version > 0), 
	CONSTRAINT fk_adapters_base_id_base_models FOREIGN KEY(base_id) REFERENCES base_models (id), 
	CONSTRAINT fk_adapters_domain_id_role_domains FOREIGN KEY(domain_id, role) REFERENCES domains (id, role), 
	CONSTRAINT uq_adapters_base_id_domain_id_digest UNIQUE (base_id, domain_id, digest), 
	CONSTRAINT uq_adapters_base_id_domain_id_id UNIQUE (base_id, domain_id, id), 
	CONSTRAINT uq_adapters_base_id_domain_id_version UNIQUE (base_id, domain_id, version)
);
INSERT INTO "adapters" VALUES(1,1,1,'spirit',1,'sha256:45b93783c6e5033be21d39a887cf0d6a100d63e764de364ec336bc1a9f69d258',2,4.0,'["q_proj", "v_proj"]',8,448,'{}','[]',NULL,'{}',1,NULL,'2026-11-22 05:10:50.583161','ann');
INSERT INTO "adapters" VALUES(2,1,1,'spirit',2,'sha256:4ba56b8f34982a531adb5a3e8cd5346d2d212354ddd525f4c1b0635c1e8fb9ed',2,4.0,'["q_proj", "v_proj"]',8,448,'{}','["general"]',NULL,'{}',0,NULL,'2026-11-22 05:10:50.599719','ann');
INSERT INTO "adapters" VALUES(3,2,1,'spirit',1,'sha256:45b93783c6e5033be21d39a887cf0d6a100d63e764de364ec336bc1a9f69d258',2,4.0,'["q_proj", "v_proj"]',8,448,'{}','[]',NULL,'{}',1,NULL,'2026-11-22 05:10:50.608198','ann');
INSERT INTO "adapters" VALUES(4,1,2,'ingredient',1,'sha256:8d7b56f8042300ef9b5c10e5e76605c9484ab33037c100115afdce1034bc71c3',2,4.0,'["q_proj", "v_proj"]',8,448,'{"HR@1": 0.25, "NDCG@3": 0.5}','["nightly", "2026-10"]','first try, Größe 8','{"trainer": "sft", "data": {"beauty": "sha256:dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"}}',0,'2026-11-22 05:10:50.653800','2026-11-22 05:10:50.616000','ann');
INSERT INTO "adapters" VALUES(5,1,2,'ingredient',2,'sha256:3c976d1d89462e43e87a7180ff1cacdcaddbc831b00c4a757bdf2dea440618ed',2,4.0,'["q_proj", "v_proj"]',8,448,'{"HR@1": 0.5}','[]',NULL,'{}',0,NULL,'2026-11-22 05:10:50.622158','ann');
INSERT INTO "adapters" VALUES(6,1,2,'ingredient',3,'sha256:abe7982010730f4a46f55ce77d09b64605686f0d63756e6b78fee2cd315a8b89',2,4.0,'["q_proj", "v_proj"]',8,448,'{}','[]',NULL,'{}',0,NULL,'2026-11-22 05:10:50.628093','ann');
INSERT INTO "adapters" VALUES(7,1,3,'ingredient',1,'sha256:8d7b56f8042300ef9b5c10e5e76605c9484ab33037c100115afdce1034bc71c3',2,4.0,'["q_proj", "v_proj"]',8,448,'{}','[]',NULL,'{}',0,NULL,'2026-11-22 05:10:50.634099','ann');
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE aliases (
	base_id BIGINT NOT NULL, 
	domain_id BIGINT NOT NULL, 
	name VARCHAR NOT NULL, 
	adapter_id BIGINT NOT NULL, 
	created_at DATETIME NOT NULL, 
	created_by VARCHAR NOT NULL, 
	CONSTRAINT pk_aliases PRIMARY KEY (base_id, domain_id, name), 
	CONSTRAINT fk_aliases_base_id_domain_id_adapter_id_adapters FOREIGN KEY(base_id, domain_id, adapter_id) REFERENCES adapters (base_id, domain_id, id)
);
INSERT INTO "aliases" VALUES(1,2,'champion',5,'2026-11-22 05:10:50.640337','ann');
INSERT INTO "aliases" VALUES(1,2,'candidate',6,'2026-11-22 05:10:50.648611','ann');
INSERT INTO "aliases" VALUES(1,1,'champion',1,'2026-11-22 05:10:50.650701','ann');
CREATE TABLE base_models (
	id INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	source VARCHAR NOT NULL, 
	revision VARCHAR, 
	digest VARCHAR NOT NULL, 
	architecture VARCHAR NOT NULL, 
	dtype VARCHAR NOT NULL, 
	parameters BIGINT NOT NULL, 
	bytes BIGINT NOT NULL, 
	created_at DATETIME NOT NULL, 
	created_by VARCHAR NOT NULL, 
	CONSTRAINT pk_base_models PRIMARY KEY (id), 
	CONSTRAINT uq_base_models_name UNIQUE (name)
);
INSERT INTO "base_models" VALUES(1,'tiny','org/tiny','c0ffee','sha256:ef6597128a9eea7f6148431d860a8de47cb11487d1ea8fbfa4567d4c606e31e1','LlamaForCausalLM','F32',352,1408,'2026-11-22 05:10:50.558652','ann');
INSERT INTO "base_models" VALUES(2,'other','org/other',NULL,'sha256:bf01954dca97f44cdd256bfb269639ef556aa398d2317332d9bb9936d5abc79b','LlamaForCausalLM','F32',352,1408,'2026-11-22 05:10:50.566320','ann');
CREATE TABLE build_inputs (
	build_id VARCHAR NOT NULL, 
	adapter_id INTEGER NOT NULL, 
	created_at DATETIME NOT NULL, 
	created_by VARCHAR NOT NULL, 
	CONSTRAINT pk_build_inputs PRIMARY KEY (build_id, adapter_id), 
	CONSTRAINT fk_build_inputs_adapter_id_adapters FOREIGN KEY(adapter_id) REFERENCES adapters (id), 
	CONSTRAINT fk_build_inputs_build_id_builds FOREIGN KEY(build_id) REFERENCES builds (id)
);
INSERT INTO "build_inputs" VALUES('660d680379ba5c91',1,'2026-11-22 05:10:50.663002','ann');
INSERT INTO "build_inputs" VALUES('660d680379ba5c91',5,'2026-11-22 05:10:50.663004','ann');
INSERT INTO "build_inputs" VALUES('660d68038ab6c328',1,'2026-11-22 05:10:50.731682','ann');
INSERT INTO "build_inputs" VALUES('660d68038ab6c328',5,'2026-11-22 05:10:50.731685','ann');
INSERT INTO "build_inputs" VALUES('660d68038ce30d3e',1,'2026-11-22 05:10:50.740311','ann');
INSERT INTO "build_inputs" VALUES('660d68038ce30d3e',7,'2026-11-22 05:10:50.740313','ann');
INSERT INTO "build_inputs" VALUES('660d68038f492ff1',1,'2026-11-22 05:10:50.750199','ann');
INSERT INTO "build_inputs" VALUES('660d68038f492ff1',5,'2026-11-22 05:10:50.750201','ann');
INSERT INTO "build_inputs" VALUES('660d680390925538',1,'2026-11-22 05:10:50.755328','ann');
INSERT INTO "build_inputs" VALUES('660d680390925538',7,'2026-11-22 05:10:50.755330','ann');
CREATE TABLE builds (
	id VARCHAR NOT NULL, 
	base_id INTEGER NOT NULL, 
	domain_id INTEGER NOT NULL, 
	status VARCHAR NOT NULL, 
	"key" VARCHAR NOT NULL, 
	recipe JSON NOT NULL, 
	inputs JSON NOT NULL, 
	digest VARCHAR, 
	coefficients JSON, 
	report JSON, 
	error JSON, 
	done BIGINT NOT NULL, 
	total BIGINT NOT NULL, 
	attempts BIGINT NOT NULL, 
	worker VARCHAR, 
	lease_until DATETIME, 
	started_at DATETIME, 
	finished_at DATETIME, 
	created_at DATETIME NOT NULL, 
	created_by VARCHAR NOT NULL, 
	CONSTRAINT pk_builds PRIMARY KEY (id), 
	CONSTRAINT ck_builds_lease CHECK ((status = 'running') = (lease_until IS NOT NULL)), 
	CONSTRAINT ck_builds_digest CHECK ((status = 'succeeded') = (digest IS NOT NULL)), 
	CONSTRAINT ck_builds_status CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')), 
	CONSTRAINT fk_builds_base_id_base_models FOREIGN KEY(base_id) REFERENCES base_models (id), 
	CONSTRAINT fk_builds_domain_id_domains FOREIGN KEY(domain_id) REFERENCES domains (id)
);
INSERT INTO "builds" VALUES('660d680379ba5c91',1,2,'succeeded','k1','{"method": "linear"}','{"base": {"name": "tiny", "digest": "sha256:ef6597128a9eea7f6148431d860a8de47cb11487d1ea8fbfa4567d4c606e31e1"}, "adapters": [{"role": "spirit", "ref": "spirit@v1", "digest": "sha256:45b93783c6e5033be21d39a887cf0d6a100d63e764de364ec336bc1a9f69d258"}, {"role": "ingredient", "ref": "beauty@v2", "digest": "sha256:3c976d1d89462e43e87a7180ff1cacdcaddbc831b00c4a757bdf2dea440618ed"}]}','sha256:3211eda544fb5a07b6f62bbcdb1608060e00e663fe081f8cb8a2e4df7badaf08','{"spirit": 0.5, "ingredient": 0.5}','{"seconds": 1.0}',NULL,0,0,1,'w',NULL,'2026-11-22 05:10:50.664604','2026-11-22 05:10:50.720580','2026-11-22 05:10:50.660705','ann');
INSERT INTO "builds" VALUES('660d68038ab6c328',1,2,'failed','k2','{"method": "linear"}','{"base": {"name": "tiny", "digest": "sha256:ef6597128a9eea7f6148431d860a8de47cb11487d1ea8fbfa4567d4c606e31e1"}, "adapters": [{"role": "spirit", "ref": "spirit@v1", "digest": "sha256:45b93783c6e5033be21d39a887cf0d6a100d63e764de364ec336bc1a9f69d258"}, {"role": "ingredient", "ref": "beauty@v2", "digest": "sha256:3c976d1d89462e43e87a7180ff1cacdcaddbc831b00c4a757bdf2dea440618ed"}]}',NULL,NULL,NULL,'{"code": "x", "message": "broke"}',0,0,1,'w',NULL,'2026-11-22 05:10:50.732722','2026-11-22 05:10:50.734607','2026-11-22 05:10:50.729861','ann');
INSERT INTO "builds" VALUES('660d68038ce30d3e',1,3,'cancelled','k3','{"method": "linear"}','{"base": {"name": "tiny", "digest": "sha256:ef6597128a9eea7f6148431d860a8de47cb11487d1ea8fbfa4567d4c606e31e1"}, "adapters": [{"role": "spirit", "ref": "spirit@v1", "digest": "sha256:45b93783c6e5033be21d39a887cf0d6a100d63e764de364ec336bc1a9f69d258"}, {"role": "ingredient", "ref": "toys@v1", "digest": "sha256:8d7b56f8042300ef9b5c10e5e76605c9484ab33037c100115afdce1034bc71c3"}]}',NULL,NULL,NULL,NULL,0,0,0,NULL,NULL,NULL,'2026-11-22 05:10:50.743980','2026-11-22 05:10:50.738621','ann');
INSERT INTO "builds" VALUES('660d68038f492ff1',1,2,'queued','k4','{"method": "linear"}','{"base": {"name": "tiny", "digest": "sha256:ef6597128a9eea7f6148431d860a8de47cb11487d1ea8fbfa4567d4c606e31e1"}, "adapters": [{"role": "spirit", "ref": "spirit@v1", "digest": "sha256:45b93783c6e5033be21d39a887cf0d6a100d63e764de364ec336bc1a9f69d258"}, {"role": "ingredient", "ref": "beauty@v2", "digest": "sha256:3c976d1d89462e43e87a7180ff1cacdcaddbc831b00c4a757bdf2dea440618ed"}]}',NULL,NULL,NULL,NULL,0,0,0,NULL,NULL,NULL,NULL,'2026-11-22 05:10:50.748472','ann');
INSERT INTO "builds" VALUES('660d680390925538',1,3,'running','k5','{"method": "linear"}','{"base": {"name": "tiny", "digest": "sha256:ef6597128a9eea7f6148431d860a8de47cb11487d1ea8fbfa4567d4c606e31e1"}, "adapters": [{"role": "spirit", "ref": "spirit@v1", "digest": "sha256:45b93783c6e5033be21d39a887cf0d6a100d63e764de364ec336bc1a9f69d258"}, {"role": "ingredient", "ref": "toys@v1", "digest": "sha256:8d7b56f8042300ef9b5c10e5e76605c9484ab33037c100115afdce1034bc71c3"}]}',NULL,NULL,NULL,NULL,0,0,1,'w2','2026-11-22 05:11:50.756251','2026-11-22 05:10:50.756251',NULL,'2026-11-22 05:10:50.753748','ann');
CREATE TABLE domains (
	id INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	role VARCHAR NOT NULL, 
	title VARCHAR NOT NULL, 
	data VARCHAR, 
	trainer VARCHAR, 
	recipe VARCHAR, 
	created_at DATETIME NOT NULL, 
	created_by VARCHAR NOT NULL, 
	CONSTRAINT pk_domains PRIMARY KEY (id), 
	CONSTRAINT ck_domains_spirit CHECK ((name = 'spirit') = (role = 'spirit')), 
	CONSTRAINT ck_domains_role CHECK (role IN ('spirit', 'ingredient')), 
	CONSTRAINT uq_domains_id_role UNIQUE (id, role), 
	CONSTRAINT uq_domains_name UNIQUE (name)
);
INSERT INTO "domains" VALUES(1,'spirit','spirit','Base spirit',NULL,NULL,NULL,'2026-11-22 05:10:50.518255','reccocktail');
INSERT INTO "domains" VALUES(2,'beauty','ingredient','Beauty','/data/beauty',NULL,'average','2026-11-22 05:10:50.568710','ann');
INSERT INTO "domains" VALUES(3,'toys','ingredient','toys',NULL,NULL,NULL,'2026-11-22 05:10:50.570091','ann');
CREATE TABLE events (
	id INTEGER NOT NULL, 
	kind VARCHAR NOT NULL, 
	subject VARCHAR NOT NULL, 
	detail JSON NOT NULL, 
	created_at DATETIME NOT NULL, 
	created_by VARCHAR NOT NULL, 
	CONSTRAINT pk_events PRIMARY KEY (id)
);
INSERT INTO "events" VALUES(1,'base.added','tiny','{"digest": "sha256:ef6597128a9eea7f6148431d860a8de47cb11487d1ea8fbfa4567d4c606e31e1", "source": "org/tiny", "revision": "c0ffee"}','2026-11-22 05:10:50.559288','ann');
INSERT INTO "events" VALUES(2,'base.added','other','{"digest": "sha256:bf01954dca97f44cdd256bfb269639ef556aa398d2317332d9bb9936d5abc79b", "source": "org/other", "revision": null}','2026-11-22 05:10:50.566453','ann');
INSERT INTO "events" VALUES(3,'domain.added','beauty','{"title": "Beauty", "data": "/data/beauty", "recipe": "average"}','2026-11-22 05:10:50.568907','ann');
INSERT INTO "events" VALUES(4,'domain.added','toys','{}','2026-11-22 05:10:50.570191','ann');
INSERT INTO "events" VALUES(5,'adapter.added','spirit@v1','{"base": "tiny", "digest": "sha256:45b93783c6e5033be21d39a887cf0d6a100d63e764de364ec336bc1a9f69d258"}','2026-11-22 05:10:50.586019','ann');
INSERT INTO "events" VALUES(6,'adapter.added','spirit@v2','{"base": "tiny", "digest": "sha256:4ba56b8f34982a531adb5a3e8cd5346d2d212354ddd525f4c1b0635c1e8fb9ed"}','2026-11-22 05:10:50.600663','ann');
INSERT INTO "events" VALUES(7,'adapter.added','spirit@v1','{"base": "other", "digest": "sha256:45b93783c6e5033be21d39a887cf0d6a100d63e764de364ec336bc1a9f69d258"}','2026-11-22 05:10:50.609079','ann');
INSERT INTO "events" VALUES(8,'adapter.added','beauty@v1','{"base": "tiny", "digest": "sha256:8d7b56f8042300ef9b5c10e5e76605c9484ab33037c100115afdce1034bc71c3"}','2026-11-22 05:10:50.616878','ann');
INSERT INTO "events" VALUES(9,'adapter.added','beauty@v2','{"base": "tiny", "digest": "sha256:3c976d1d89462e43e87a7180ff1cacdcaddbc831b00c4a757bdf2dea440618ed"}','2026-11-22 05:10:50.622950','ann');
INSERT INTO "events" VALUES(10,'adapter.added','beauty@v3','{"base": "tiny", "digest": "sha256:abe7982010730f4a46f55ce77d09b64605686f0d63756e6b78fee2cd315a8b89"}','2026-11-22 05:10:50.628857','ann');
INSERT INTO "events" VALUES(11,'adapter.added','toys@v1','{"base": "tiny", "digest": "sha256:8d7b56f8042300ef9b5c10e5e76605c9484ab33037c100115afdce1034bc71c3"}','2026-11-22 05:10:50.634860','ann');
INSERT INTO "events" VALUES(12,'alias.set','beauty@champion','{"base": "tiny", "to": "beauty@v1"}','2026-11-22 05:10:50.640485','ann');
INSERT INTO "events" VALUES(13,'alias.moved','beauty@champion','{"base": "tiny", "from": "beauty@v1", "to": "beauty@v2"}','2026-11-22 05:10:50.646350','ann');
INSERT INTO "events" VALUES(14,'alias.set','beauty@candidate','{"base": "tiny", "to": "beauty@v3"}','2026-11-22 05:10:50.648689','ann');
INSERT INTO "events" VALUES(15,'alias.set','spirit@champion','{"base": "tiny", "to": "spirit@v1"}','2026-11-22 05:10:50.650773','ann');
INSERT INTO "events" VALUES(16,'adapter.archived','beauty@v1','{"base": "tiny"}','2026-11-22 05:10:50.654069','ann');
INSERT INTO "events" VALUES(17,'build.queued','660d680379ba5c91','{"domain": "beauty", "key": "k1"}','2026-11-22 05:10:50.663143','ann');
INSERT INTO "events" VALUES(18,'build.running','660d680379ba5c91','{"domain": "beauty", "worker": "w"}','2026-11-22 05:10:50.668965','ann');
INSERT INTO "events" VALUES(19,'build.succeeded','660d680379ba5c91','{"domain": "beauty", "digest": "sha256:3211eda544fb5a07b6f62bbcdb1608060e00e663fe081f8cb8a2e4df7badaf08"}','2026-11-22 05:10:50.721690','ann');
INSERT INTO "events" VALUES(20,'build.published','660d680379ba5c91','{"repo": "acme/beauty", "revision": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "tag": "v1"}','2026-11-22 05:10:50.722886','ann');
INSERT INTO "events" VALUES(21,'build.queued','660d68038ab6c328','{"domain": "beauty", "key": "k2"}','2026-11-22 05:10:50.731779','ann');
INSERT INTO "events" VALUES(22,'build.running','660d68038ab6c328','{"domain": "beauty", "worker": "w"}','2026-11-22 05:10:50.733769','ann');
INSERT INTO "events" VALUES(23,'build.failed','660d68038ab6c328','{"domain": "beauty", "error": {"code": "x", "message": "broke"}}','2026-11-22 05:10:50.735338','ann');
INSERT INTO "events" VALUES(24,'build.queued','660d68038ce30d3e','{"domain": "toys", "key": "k3"}','2026-11-22 05:10:50.740399','ann');
INSERT INTO "events" VALUES(25,'build.cancelled','660d68038ce30d3e','{"domain": "toys"}','2026-11-22 05:10:50.744666','ann');
INSERT INTO "events" VALUES(26,'build.queued','660d68038f492ff1','{"domain": "beauty", "key": "k4"}','2026-11-22 05:10:50.750289','ann');
INSERT INTO "events" VALUES(27,'build.queued','660d680390925538','{"domain": "toys", "key": "k5"}','2026-11-22 05:10:50.755418','ann');
INSERT INTO "events" VALUES(28,'build.running','660d680390925538','{"domain": "toys", "worker": "w2"}','2026-11-22 05:10:50.757244','ann');
CREATE TABLE publications (
	id INTEGER NOT NULL, 
	build_id VARCHAR NOT NULL, 
	repo VARCHAR NOT NULL, 
	revision VARCHAR NOT NULL, 
	tag VARCHAR, 
	created_at DATETIME NOT NULL, 
	created_by VARCHAR NOT NULL, 
	CONSTRAINT pk_publications PRIMARY KEY (id), 
	CONSTRAINT fk_publications_build_id_builds FOREIGN KEY(build_id) REFERENCES builds (id)
);
INSERT INTO "publications" VALUES(1,'660d680379ba5c91','acme/beauty','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','v1','2026-11-22 05:10:50.723372','ann');
CREATE INDEX ix_events_subject ON events (subject);
CREATE UNIQUE INDEX uq_adapters_current_spirit ON adapters (base_id) WHERE is_current;
CREATE INDEX ix_builds_key ON builds ("key");
CREATE UNIQUE INDEX uq_builds_open_key ON builds ("key") WHERE status IN ('queued', 'running');
COMMIT;
