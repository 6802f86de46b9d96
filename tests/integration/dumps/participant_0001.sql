BEGIN TRANSACTION;
CREATE TABLE charges (
	number INTEGER NOT NULL, 
	"key" TEXT NOT NULL, 
	what TEXT NOT NULL, 
	PRIMARY KEY (number)
);
INSERT INTO "charges" VALUES(1,'done','charge');
INSERT INTO "charges" VALUES(2,'undone','charge');
INSERT INTO "charges" VALUES(3,'undone','refund');
CREATE TABLE farandole_barrier (
	"key" TEXT NOT NULL, 
	definition TEXT NOT NULL, 
	step TEXT NOT NULL, 
	state TEXT NOT NULL, 
	trigger_digest BLOB NOT NULL, 
	awaited_id TEXT NOT NULL, 
	PRIMARY KEY ("key", definition, step)
);
INSERT INTO "farandole_barrier" VALUES('done','order-fulfilment','take-payment','DONE',X'3DC9D276957DF603461B71F580A9E6D1C62E87248104D4F160FE2A949EB647E3','');
INSERT INTO "farandole_barrier" VALUES('undone','order-fulfilment','take-payment','UNDONE',X'B72CEE2C4AE9D2F92C5F37F9480A5796B75F70F2BE2B58C222503C30EBF23384','');
INSERT INTO "farandole_barrier" VALUES('void','order-fulfilment','take-payment','VOID',X'','');
CREATE TABLE farandole_inbox (
	identity TEXT NOT NULL, 
	sequence BIGINT NOT NULL, 
	disposition SMALLINT NOT NULL, 
	PRIMARY KEY (identity)
);
INSERT INTO "farandole_inbox" VALUES('someone/done',1,1);
INSERT INTO "farandole_inbox" VALUES('someone/c2c741c7-15f8-5feb-9bee-4803a25b41cf',2,1);
INSERT INTO "farandole_inbox" VALUES('someone/d9bdbef1-57eb-5f67-bd1c-12ecaaf68785',3,1);
INSERT INTO "farandole_inbox" VALUES('someone/843873d8-5bb8-5dff-b121-fb627d8eb9f7',4,1);
INSERT INTO "farandole_inbox" VALUES('correlator/92c4b116-24fd-501d-9558-ae5567366f98',10,1);
CREATE TABLE farandole_outbox (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	"key" TEXT NOT NULL, 
	subject TEXT NOT NULL, 
	headers TEXT NOT NULL, 
	data BLOB NOT NULL
);
INSERT INTO "farandole_outbox" VALUES(1,'done','events.done.payments.v1.PaymentProcessed','{"ce-specversion": "1.0", "ce-id": "189b8b16-e8e3-582b-a21d-36fda0f7ac3b", "ce-source": "payments", "ce-type": "payments.v1.PaymentProcessed", "ce-time": "2026-01-01T00:00:00Z", "ce-datacontenttype": "application/protobuf", "ce-correlationid": "done", "Nats-Msg-Id": "payments/189b8b16-e8e3-582b-a21d-36fda0f7ac3b", "ce-causationid": "done"}',X'0A04646F6E65122464616332656335642D633636302D356361642D613933322D383162356632396566626239186422034555522A0161');
INSERT INTO "farandole_outbox" VALUES(2,'undone','events.undone.payments.v1.PaymentProcessed','{"ce-specversion": "1.0", "ce-id": "0d4e2c98-30db-52b8-a8ce-69477d495090", "ce-source": "payments", "ce-type": "payments.v1.PaymentProcessed", "ce-time": "2026-01-01T00:00:00Z", "ce-datacontenttype": "application/protobuf", "ce-correlationid": "undone", "Nats-Msg-Id": "payments/0d4e2c98-30db-52b8-a8ce-69477d495090", "ce-causationid": "c2c741c7-15f8-5feb-9bee-4803a25b41cf"}',X'0A06756E646F6E65122461313964353431622D663864332D353864632D613736312D373362386239313935393937186422034555522A0161');
INSERT INTO "farandole_outbox" VALUES(3,'undone','events.undone.payments.v1.PaymentRefunded','{"ce-specversion": "1.0", "ce-id": "f36a9863-7447-5531-ba74-eae503c2fb3f", "ce-source": "payments", "ce-type": "payments.v1.PaymentRefunded", "ce-time": "2026-01-01T00:00:00Z", "ce-datacontenttype": "application/protobuf", "ce-correlationid": "undone", "Nats-Msg-Id": "payments/f36a9863-7447-5531-ba74-eae503c2fb3f", "ce-causationid": "d9bdbef1-57eb-5f67-bd1c-12ecaaf68785"}',X'0A06756E646F6E65122461313964353431622D663864332D353864632D613736312D373362386239313935393937220E5368697070696E674661696C6564');
INSERT INTO "farandole_outbox" VALUES(4,'void','events.void.choreography.v1.StepVoided','{"ce-specversion": "1.0", "ce-id": "d5d8d084-2963-5734-80b9-cc7221a11ef0", "ce-source": "payments", "ce-type": "choreography.v1.StepVoided", "ce-time": "2026-01-01T00:00:00Z", "ce-datacontenttype": "application/protobuf", "ce-correlationid": "void", "Nats-Msg-Id": "payments/d5d8d084-2963-5734-80b9-cc7221a11ef0", "ce-causationid": "843873d8-5bb8-5dff-b121-fb627d8eb9f7"}',X'0A04766F696412106F726465722D66756C66696C6D656E742A0C74616B652D7061796D656E7432087061796D656E7473');
INSERT INTO "farandole_outbox" VALUES(5,'broken','deadletters.payments.inventory.v1.ItemsReserved','{"ce-specversion": "1.0", "ce-id": "394da311-62a7-5903-8fb0-eb3307218693", "ce-source": "someone", "ce-type": "inventory.v1.ItemsReserved", "ce-time": "2026-01-01T00:00:00Z", "ce-datacontenttype": "application/protobuf", "ce-correlationid": "broken", "farandole-participant": "payments", "farandole-sequence": "5", "farandole-subject": "events.0.inventory.v1.ItemsReserved", "farandole-reason": "RETRIES_EXHAUSTED", "farandole-detail": "RuntimeError: the card reader is broken", "Nats-Msg-Id": "payments-5"}',X'0A0662726F6B656E120172186422034555522A016332086120737472656574');
INSERT INTO "farandole_outbox" VALUES(6,'broken','events.broken.choreography.v1.DeadLetterRecorded','{"ce-specversion": "1.0", "ce-id": "cfa9b58b-d1d3-5e91-8794-bb894ad82183", "ce-source": "payments", "ce-type": "choreography.v1.DeadLetterRecorded", "ce-time": "2026-01-01T00:00:01.500000Z", "ce-datacontenttype": "application/protobuf", "ce-correlationid": "broken", "Nats-Msg-Id": "payments/cfa9b58b-d1d3-5e91-8794-bb894ad82183", "ce-causationid": "394da311-62a7-5903-8fb0-eb3307218693"}',X'0A0662726F6B656E12106F726465722D66756C66696C6D656E741A0C74616B652D7061796D656E7422087061796D656E747328053A1A696E76656E746F72792E76312E4974656D7352657365727665644207736F6D656F6E654A2433393464613331312D363261372D353930332D386662302D656233333037323138363933500C5A2752756E74696D654572726F723A207468652063617264207265616465722069732062726F6B656E6003');
CREATE TABLE farandole_position (
	lane INTEGER NOT NULL, 
	incarnation TEXT NOT NULL, 
	epoch BIGINT NOT NULL, 
	position BIGINT NOT NULL, 
	position_time BIGINT, 
	in_use BOOLEAN NOT NULL, 
	PRIMARY KEY (lane)
);
INSERT INTO "farandole_position" VALUES(0,'stream-1',5,10,1767225600000000,1);
CREATE TABLE farandole_prerequisite (
	"key" TEXT NOT NULL, 
	definition TEXT NOT NULL, 
	step TEXT NOT NULL, 
	event_type TEXT NOT NULL, 
	identity TEXT NOT NULL, 
	digest BLOB NOT NULL, 
	sequence BIGINT NOT NULL, 
	subject TEXT NOT NULL, 
	headers TEXT NOT NULL, 
	data BLOB NOT NULL, 
	stream_time BIGINT NOT NULL, 
	PRIMARY KEY ("key", definition, step, event_type)
);
INSERT INTO "farandole_prerequisite" VALUES('done','order-fulfilment','dispatch-order','inventory.v1.ItemsReserved','someone/done',X'3DC9D276957DF603461B71F580A9E6D1C62E87248104D4F160FE2A949EB647E3',1,'events.1.inventory.v1.ItemsReserved','{"ce-specversion": "1.0", "ce-id": "done", "ce-source": "someone", "ce-type": "inventory.v1.ItemsReserved", "ce-time": "2026-01-01T00:00:00Z", "ce-datacontenttype": "application/protobuf", "ce-correlationid": "done", "Nats-Msg-Id": "someone/done"}',X'0A04646F6E65120172186422034555522A016332086120737472656574',1767225600000000);
INSERT INTO "farandole_prerequisite" VALUES('undone','order-fulfilment','dispatch-order','inventory.v1.ItemsReserved','someone/c2c741c7-15f8-5feb-9bee-4803a25b41cf',X'B72CEE2C4AE9D2F92C5F37F9480A5796B75F70F2BE2B58C222503C30EBF23384',2,'events.2.inventory.v1.ItemsReserved','{"ce-specversion": "1.0", "ce-id": "c2c741c7-15f8-5feb-9bee-4803a25b41cf", "ce-source": "someone", "ce-type": "inventory.v1.ItemsReserved", "ce-time": "2026-01-01T00:00:00Z", "ce-datacontenttype": "application/protobuf", "ce-correlationid": "undone", "Nats-Msg-Id": "someone/c2c741c7-15f8-5feb-9bee-4803a25b41cf"}',X'0A06756E646F6E65120172186422034555522A016332086120737472656574',1767225600000000);
CREATE TABLE farandole_queue (
	sequence BIGINT NOT NULL, 
	"key" TEXT NOT NULL, 
	subject TEXT NOT NULL, 
	headers TEXT NOT NULL, 
	data BLOB NOT NULL, 
	stream_time BIGINT NOT NULL, 
	state SMALLINT NOT NULL, 
	attempts INTEGER NOT NULL, 
	due BIGINT NOT NULL, 
	pause BIGINT NOT NULL, 
	error TEXT NOT NULL, 
	attempts_before INTEGER NOT NULL, 
	definition TEXT NOT NULL, 
	step TEXT NOT NULL, 
	direction TEXT NOT NULL, 
	dependency TEXT NOT NULL, 
	PRIMARY KEY (sequence)
);
INSERT INTO "farandole_queue" VALUES(5,'broken','events.0.inventory.v1.ItemsReserved','{"ce-specversion": "1.0", "ce-id": "394da311-62a7-5903-8fb0-eb3307218693", "ce-source": "someone", "ce-type": "inventory.v1.ItemsReserved", "ce-time": "2026-01-01T00:00:00Z", "ce-datacontenttype": "application/protobuf", "ce-correlationid": "broken", "Nats-Msg-Id": "someone/394da311-62a7-5903-8fb0-eb3307218693"}',X'0A0662726F6B656E120172186422034555522A016332086120737472656574',1767225600000000,3,3,1767225601500000,0,'RuntimeError: the card reader is broken',0,'order-fulfilment','take-payment','forward','');
INSERT INTO "farandole_queue" VALUES(6,'broken','events.0.inventory.v1.ItemsReserved','{"ce-specversion": "1.0", "ce-id": "624e55d5-a991-5964-889b-8a9dece67cba", "ce-source": "someone", "ce-type": "inventory.v1.ItemsReserved", "ce-time": "2026-01-01T00:00:00Z", "ce-datacontenttype": "application/protobuf", "ce-correlationid": "broken", "Nats-Msg-Id": "someone/624e55d5-a991-5964-889b-8a9dece67cba"}',X'0A0662726F6B656E120172180722034555522A016332086120737472656574',1767225600000000,2,0,0,0,'',0,'','','','');
INSERT INTO "farandole_queue" VALUES(7,'poison','events.1.inventory.v1.ItemsReserved','{"ce-specversion": "1.0", "ce-id": "27fd3721-51de-5104-9bb6-0f00970568cb", "ce-source": "someone", "ce-type": "inventory.v1.ItemsReserved", "ce-time": "2026-01-01T00:00:00Z", "ce-datacontenttype": "application/protobuf", "ce-correlationid": "poison", "Nats-Msg-Id": "someone/27fd3721-51de-5104-9bb6-0f00970568cb"}',X'0A06706F69736F6E120172186422034555522A016332086120737472656574',1767225600000000,1,1,1767225602000000,500000,'RuntimeError: the card reader is broken',0,'order-fulfilment','take-payment','forward','');
INSERT INTO "farandole_queue" VALUES(8,'tried','events.15.inventory.v1.ItemsReserved','{"ce-specversion": "1.0", "ce-id": "28b26955-c01c-58ff-a576-790795d78c43", "ce-source": "someone", "ce-type": "inventory.v1.ItemsReserved", "ce-time": "2026-01-01T00:00:00Z", "ce-datacontenttype": "application/protobuf", "ce-correlationid": "tried", "Nats-Msg-Id": "someone/28b26955-c01c-58ff-a576-790795d78c43"}',X'0A057472696564120172186422034555522A016332086120737472656574',1767225600000000,1,1,1767225602001000,500000,'RuntimeError: the card reader is broken',0,'order-fulfilment','take-payment','forward','');
CREATE TABLE farandole_set_aside (
	sequence BIGINT NOT NULL, 
	"key" TEXT NOT NULL, 
	subject TEXT NOT NULL, 
	headers TEXT NOT NULL, 
	data BLOB NOT NULL, 
	stream_time BIGINT NOT NULL, 
	attempts INTEGER NOT NULL, 
	PRIMARY KEY (sequence)
);
INSERT INTO "farandole_set_aside" VALUES(9,'partition-2-3','events.2.inventory.v1.ItemsReserved','{"ce-specversion": "1.0", "ce-id": "6489cb35-fda8-5b94-b71f-d4eb0fa8722c", "ce-source": "someone", "ce-type": "inventory.v1.ItemsReserved", "ce-time": "2026-01-01T00:00:00Z", "ce-datacontenttype": "application/protobuf", "ce-correlationid": "unread", "Nats-Msg-Id": "someone/6489cb35-fda8-5b94-b71f-d4eb0fa8722c"}',X'0A06756E72656164120172186422034555522A016332086120737472656574',1767225600000000,1);
CREATE TABLE farandole_started (
	sequence BIGINT NOT NULL, 
	times INTEGER NOT NULL, 
	PRIMARY KEY (sequence)
);
INSERT INTO "farandole_started" VALUES(7,2);
INSERT INTO "farandole_started" VALUES(11,1);
CREATE INDEX ix_farandole_queue_key ON farandole_queue ("key");
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('farandole_outbox',6);
COMMIT;
