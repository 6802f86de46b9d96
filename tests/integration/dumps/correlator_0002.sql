BEGIN TRANSACTION;
CREATE TABLE correlator_position (
	partition INTEGER NOT NULL, 
	epoch BIGINT NOT NULL, 
	position BIGINT NOT NULL, 
	position_time BIGINT, 
	incarnation TEXT NOT NULL, 
	PRIMARY KEY (partition)
);
INSERT INTO "correlator_position" VALUES(0,1,40,NULL,'2026-03-01T08:00:00Z');
INSERT INTO "correlator_position" VALUES(1,1,40,NULL,'2026-03-01T08:00:00Z');
INSERT INTO "correlator_position" VALUES(2,1,40,NULL,'2026-03-01T08:00:00Z');
INSERT INTO "correlator_position" VALUES(3,1,40,NULL,'2026-03-01T08:00:00Z');
INSERT INTO "correlator_position" VALUES(4,1,40,NULL,'2026-03-01T08:00:00Z');
INSERT INTO "correlator_position" VALUES(5,1,40,NULL,'2026-03-01T08:00:00Z');
INSERT INTO "correlator_position" VALUES(6,1,40,NULL,'2026-03-01T08:00:00Z');
INSERT INTO "correlator_position" VALUES(7,1,40,NULL,'2026-03-01T08:00:00Z');
INSERT INTO "correlator_position" VALUES(8,1,40,NULL,'2026-03-01T08:00:00Z');
INSERT INTO "correlator_position" VALUES(9,1,40,NULL,'2026-03-01T08:00:00Z');
INSERT INTO "correlator_position" VALUES(10,1,40,NULL,'2026-03-01T08:00:00Z');
INSERT INTO "correlator_position" VALUES(11,1,40,NULL,'2026-03-01T08:00:00Z');
INSERT INTO "correlator_position" VALUES(12,1,40,NULL,'2026-03-01T08:00:00Z');
INSERT INTO "correlator_position" VALUES(13,1,40,NULL,'2026-03-01T08:00:00Z');
INSERT INTO "correlator_position" VALUES(14,1,40,NULL,'2026-03-01T08:00:00Z');
INSERT INTO "correlator_position" VALUES(15,1,40,NULL,'2026-03-01T08:00:00Z');
CREATE TABLE correlator_started (
	replica TEXT NOT NULL, 
	definitions TEXT NOT NULL, 
	PRIMARY KEY (replica)
);
INSERT INTO "correlator_started" VALUES('correlator-1','3a55052091c556056dc4d7e08187efbacf2e5892ddd9aa8b4c3d9440def55e19');
CREATE TABLE dead_letter (
	id INTEGER NOT NULL, 
	participant TEXT NOT NULL, 
	sequence BIGINT NOT NULL, 
	subject TEXT NOT NULL, 
	event_type TEXT NOT NULL, 
	"key" TEXT, 
	reason SMALLINT NOT NULL, 
	detail TEXT NOT NULL, 
	failure TEXT NOT NULL, 
	stream_time BIGINT NOT NULL, 
	headers TEXT NOT NULL, 
	body_size BIGINT NOT NULL, 
	body_sha256 TEXT NOT NULL, 
	state_sequence BIGINT NOT NULL, 
	payload BLOB, 
	body_prefix BLOB NOT NULL, 
	definition TEXT, 
	step TEXT, 
	compensation BOOLEAN NOT NULL, 
	attempts INTEGER NOT NULL, 
	state SMALLINT NOT NULL, 
	close_time BIGINT, 
	close_actor TEXT NOT NULL, 
	close_reason TEXT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (participant, sequence)
);
INSERT INTO "dead_letter" VALUES(1,'correlator',7,'events.3.orders.v1.OrderCreated','orders.v1.OrderCreated',NULL,7,'the body is not JSON: ü','a234c4778792d24b6b9ac5c530e66992',1772355607123456,'{"ce-id":"1","ce-source":"k\u00e4se"}',3,'abababababababababababababababababababababababababababababababab',7,NULL,X'0001FF',NULL,NULL,0,0,1,NULL,'','');
INSERT INTO "dead_letter" VALUES(2,'payments',1,'events.12.orders.v1.OrderCreated','orders.v1.OrderCreated','a',12,'tried 3 times','56b26b7256d759dcf69e2042690187eb',1772355601123456,'{"ce-id":"event-1","ce-source":"orders","ce-type":"orders.v1.OrderCreated"}',0,'',8,NULL,X'','order-fulfilment','take-payment',1,3,1,NULL,'','');
INSERT INTO "dead_letter" VALUES(3,'payments',2,'events.12.orders.v1.OrderCreated','orders.v1.OrderCreated','a',12,'tried 3 times','56b26b7256d759dcf69e2042690187eb',1772355602123456,'{"ce-id":"event-2","ce-source":"orders","ce-type":"orders.v1.OrderCreated"}',0,'',10,NULL,X'','order-fulfilment','take-payment',1,3,3,1772355610123456,'ada','paid');
CREATE TABLE farandole_correlator_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT farandole_correlator_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "farandole_correlator_version" VALUES('0002');
CREATE TABLE farandole_lease (
	lane SMALLINT NOT NULL, 
	holder TEXT NOT NULL, 
	PRIMARY KEY (lane)
);
INSERT INTO "farandole_lease" VALUES(0,'correlator-1');
INSERT INTO "farandole_lease" VALUES(1,'correlator-1');
INSERT INTO "farandole_lease" VALUES(2,'correlator-1');
INSERT INTO "farandole_lease" VALUES(3,'correlator-1');
CREATE TABLE "farandole_outbox" (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	"key" TEXT NOT NULL, 
	subject TEXT NOT NULL, 
	headers TEXT NOT NULL, 
	data BLOB NOT NULL, 
	partition SMALLINT NOT NULL
);
INSERT INTO "farandole_outbox" VALUES(1,'a','events.a.choreography.v1.SagaCompleted','{"Nats-Msg-Id": "m/a"}',X'0080',12);
INSERT INTO "farandole_outbox" VALUES(2,'correlator-7','events.correlator-7.choreography.v1.SagaCompleted','{"Nats-Msg-Id": "m/correlator-7"}',X'0080',6);
INSERT INTO "farandole_outbox" VALUES(3,'unreadable-7','events.unreadable-7.choreography.v1.SagaCompleted','{"Nats-Msg-Id": "m/unreadable-7"}',X'0080',2);
CREATE TABLE farandole_replica (
	name TEXT NOT NULL, 
	run TEXT NOT NULL, 
	lanes SMALLINT NOT NULL, 
	is_able BOOLEAN NOT NULL, 
	expires BIGINT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "farandole_replica" VALUES('correlator-1','737f94440be2',4,1,1795825551299);
CREATE TABLE saga (
	id INTEGER NOT NULL, 
	"key" TEXT NOT NULL, 
	definition TEXT NOT NULL, 
	partition SMALLINT NOT NULL, 
	version INTEGER NOT NULL, 
	revision BIGINT NOT NULL, 
	status SMALLINT NOT NULL, 
	cause SMALLINT NOT NULL, 
	cause_detail TEXT NOT NULL, 
	health SMALLINT NOT NULL, 
	start_time BIGINT, 
	update_time BIGINT NOT NULL, 
	end_time BIGINT, 
	deadline BIGINT, 
	next_deadline BIGINT, 
	finished_late BOOLEAN NOT NULL, 
	steps TEXT NOT NULL, 
	history_omitted BIGINT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE ("key", definition)
);
INSERT INTO "saga" VALUES(1,'a','order-fulfilment',12,1,2,1,0,'',1,1772355600123456,1772355600123456,NULL,1772357400123456,1772355660123456,0,'[["create-order",3,null,1772355600123456,1772355600123456],["take-payment",2,1772355660123456,1772355601123456,null],["ship",1,null,null,null]]',0);
INSERT INTO "saga" VALUES(2,'b','drone-delivery',5,2,1,1,0,'',1,1772355600123456,1772355600123456,1772355609123456,NULL,1772355660123456,0,'[["create-order",3,null,1772355600123456,1772355600123456],["take-payment",2,1772355660123456,1772355601123456,null],["ship",1,null,null,null]]',0);
CREATE TABLE saga_definition (
	name TEXT NOT NULL, 
	version INTEGER NOT NULL, 
	digest TEXT NOT NULL, 
	message BLOB NOT NULL, 
	is_active BOOLEAN NOT NULL, 
	PRIMARY KEY (name, version)
);
INSERT INTO "saga_definition" VALUES('order-fulfilment',1,'32d19268194cf948649d623471513db72de44ebc2db2a070920909763d73bf18',X'0A106F726465722D66756C66696C6D656E7410011A074F72646572732E220308880E2A166F72646572732E76312E4F7264657243726561746564320C612E76312E536869707065643A380A047368697012087368697070696E67180222166F72646572732E76312E4F7264657243726561746564320C612E76312E53686970706564',1);
INSERT INTO "saga_definition" VALUES('drone-delivery',2,'28dbb53c41d8819e6d2858a147e7753c2d7ce087d56332827c21a0c3497a3c0b',X'0A0E64726F6E652D64656C697665727910021A074F72646572732E220308880E2A166F72646572732E76312E4F7264657243726561746564320C612E76312E536869707065643A380A047368697012087368697070696E67180222166F72646572732E76312E4F7264657243726561746564320C612E76312E53686970706564',0);
CREATE TABLE saga_history (
	saga BIGINT NOT NULL, 
	sequence BIGINT NOT NULL, 
	disposition SMALLINT NOT NULL, 
	disposition_reason TEXT NOT NULL, 
	stream_time BIGINT NOT NULL, 
	type TEXT NOT NULL, 
	source TEXT NOT NULL, 
	event_id TEXT NOT NULL, 
	digest BLOB NOT NULL, 
	time BIGINT NOT NULL, 
	causation_id TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	lifecycle TEXT, 
	payload BLOB, 
	PRIMARY KEY (saga, sequence), 
	FOREIGN KEY(saga) REFERENCES saga (id)
);
INSERT INTO "saga_history" VALUES(1,1,1,'',1772355601123456,'orders.v1.OrderCreated','urn:källa/1','event-1',X'0100FF',1772355600623456,'event-0','out of stock',NULL,NULL);
INSERT INTO "saga_history" VALUES(1,2,1,'',1772355602123456,'inventory.v1.ItemsReserved','urn:källa/1','event-2',X'0200FF',1772355601623456,'event-1','out of stock',NULL,NULL);
INSERT INTO "saga_history" VALUES(2,3,1,'',1772355603123456,'orders.v1.OrderCreated','urn:källa/1','event-3',X'0300FF',1772355602623456,'event-2','out of stock',NULL,X'007061796C6F6164');
CREATE INDEX saga_by_status ON saga (status, update_time, id);
CREATE INDEX saga_by_definition ON saga (definition, update_time, id);
CREATE INDEX saga_by_update ON saga (update_time, id);
CREATE INDEX saga_by_deadline ON saga (coalesce(deadline, 253402300799999999), id);
CREATE INDEX saga_by_start ON saga (start_time, id);
CREATE INDEX saga_by_next_deadline ON saga (partition, next_deadline) WHERE next_deadline IS NOT NULL;
CREATE INDEX dead_letter_by_key ON dead_letter ("key", id);
CREATE INDEX dead_letter_by_state ON dead_letter (state, id);
CREATE INDEX dead_letter_by_reason ON dead_letter (reason, id);
CREATE INDEX ix_farandole_outbox_partition ON farandole_outbox (partition);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('farandole_outbox',3);
COMMIT;
