%% SPDX-License-Identifier: Apache-2.0
%% @doc Finds out whether all nodes that this one is connected to have done with their former
%% connections to another.
%%
%% Each is asked whether such a connection has ended; when it has, its `global' is called: the
%% answer comes after what it had to say of that end, as both are from the same process. Then this
%% node's `global' is called, which has it all by then. Nodes that are not connected any more, and
%% those without Chatter, are not waited for.
-module(chatter_past).

-export([is_needed/0, await/1]).

%% Spawned.
-export([ask/3]).

%% How long the others are waited for. A new attempt to connect has net_setuptime (7 s).
-define(LIMIT_MS, 2500).
%% How long one that still has its connection is waited for: perhaps it does not lose it at all.
-define(CONNECTED_MS, 1500).
-define(RETRY_MS, 20).
%% From when the VM has told one process of an end until it has told all.
-define(TOLD_MS, 10).

%% @doc Returns when they have, or it has taken too long.
-spec await(node()) -> ok.
await(Node) ->
    Until = erlang:monotonic_time(millisecond) + ?LIMIT_MS,
    Asked = [spawn_monitor(?MODULE, ask, [Other, Node, Until])
             || Other <- lists:delete(Node, nodes())],
    [receive {'DOWN', Ref, process, Pid, _} -> ok end || {Pid, Ref} <- Asked],
    _ = call(global_name_server, get_known, Until),
    ok.

%% @doc `global' keeps no node from connecting to others if it was told not to.
-spec is_needed() -> boolean().
is_needed() ->
    connects_all() andalso
        application:get_env(kernel, prevent_overlapping_partitions) =/= {ok, false}.

%% As `global' reads it.
connects_all() ->
    case application:get_env(kernel, connect_all) of
        {ok, Value} -> Value =/= false;
        undefined -> init:get_argument(connect_all) =/= {ok, [["false"]]}
    end.

%% @private
-spec ask(node(), node(), integer()) -> ok.
ask(Other, Node, Until) ->
    case call({chatter_node, Other}, {ended, Node}, Until) of
        {ok, false} ->
            receive after ?RETRY_MS -> ok end,
            case erlang:monotonic_time(millisecond) < Until - ?LIMIT_MS + ?CONNECTED_MS of
                true -> ask(Other, Node, Until);
                false -> ok
            end;
        {ok, _} ->
            receive after ?TOLD_MS -> ok end,
            _ = call({global_name_server, Other}, get_known, Until),
            ok;
        error -> ok
    end.

call(Server, Request, Until) ->
    Left = Until - erlang:monotonic_time(millisecond),
    try gen_server:call(Server, Request, max(0, Left)) of
        Answer -> {ok, Answer}
    catch
        exit:_ -> error
    end.
