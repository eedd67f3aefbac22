%% Fairness and isolation of flows (chatter_fair). The bars are those of `make fair`, which wants
%% a machine without other work; what is asserted here leaves room for one that has some.
-module(chatter_fair_SUITE).
-behaviour(ct_suite).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

suite() -> [{timetrap, {minutes, 4}}].

%% Without flows a channel is one queue on one way, in which all are late together. Jain's index and
%% what loss does are figures of `make fair` alone until they keep their bars on a busy machine.
all() ->
    case lists:member(flows, chatter_config:keys()) of
        true -> [slow, onset, queue, high, class];
        false -> [slow]
    end.

init_per_suite(Config) ->
    case {filelib:is_regular(chatter_cluster:native_lib()), chatter_lab:available()} of
        {true, ok} -> Config;
        {true, Skip} -> Skip;
        {false, _} -> {fail, {not_built, chatter_cluster:native_lib()}}
    end.

end_per_suite(_Config) -> ok.

%% Given senders of large messages that have just begun, expect them to be held back before they
%% have filled the channel (it was 53 MiB).
onset(_Config) -> within(onset, [{0, '=<', 16}]).

%% Given a sender with 10,000 messages queued, expect others to be hardly slower for it.
queue(_Config) -> within(queue, [{2, '=<', 10}]).

%% Given high priority that asks for nearly all of a link, expect something left for bulk.
high(_Config) -> within(high, [{1, '>=', 0.08}]).

%% Given processes of different classes beside bulk, expect the high one to wait less than a normal
%% one, and that less than a low one, over a connection and without one.
class(_Config) -> within(class, [{At, '=<', 0.9} || At <- [3, 4, 8, 9]]).

%% Given one of 32 channels through a relay whose receiver stops, expect the others to go on and the
%% relay to stay as it is.
slow(_Config) -> within(slow, [{1, '>=', 0.8}, {3, '=<', 64}]).

%% The figures of a measure, and what each of some has to be.
within(Measure, Bounds) ->
    case chatter_fair:measure(Measure, []) of
        {skip, Why} -> {skip, Why};
        Rows ->
            ct:pal("~ts", [[io_lib:format("~-60s ~10.3f  ~0p~n", [What, 1.0 * Value, Bar])
                            || #{what := What, value := Value, bar := Bar} <- Rows]]),
            ?assertEqual([], [{What, Value, Sign, Bound}
                              || {At, Sign, Bound} <- Bounds,
                                 #{what := What, value := Value} <- [lists:nth(At + 1, Rows)],
                                 not erlang:Sign(Value, Bound)])
    end.
