%% SPDX-License-Identifier: Apache-2.0
%% @doc Has new connections wait until `global' has taken in, everywhere, that old ones are over.
%%
%% `global' tells all nodes that it is connected to of every connection that it loses, and they
%% cut off the node that it names (prevent_overlapping_partitions). It names nodes by their names:
%% what it says of a connection that is over also ends the one that has begun since. With sockets it
%% is the same race, and stock distribution loses it now and then. So:
%%
%% A node that has lost all its connections begins none before its own `global' has taken that in.
%% Meanwhile who asks for one fails and tries again: the VM keeps what `global' sends over a
%% connection that is being set up, and would deliver it. Who is asked waits, before the handshake
%% of the VM. The end of some connections does not hold up the others: an attempt that fails can
%% make `global' tell all to cut off the node that it was meant for, though that is well.
%%
%% Whoever has lost a connection to a node, and has others, begins none with it before its own
%% `global' has taken that in (who asks fails meanwhile), nor before all those to whom it is
%% connected have done with theirs ({@link chatter_past}; who asks and who is asked wait).
%%
%% What is kept here belongs to `chatter_node', which hears of nodes that are gone before it hears
%% of a route over which a new connection could come.
-module(chatter_settle).

-export([new/1, node_gone/2, nodeup/2, nodedown/3, done/3, settled/2, past/3, asked/3, ended/3]).

%% Spawned.
-export([ask_global/2, ask_global/3, ask_others/3]).

-export_type([settle/0]).

-record(settle, {
    %% The nodes that are connected, as the VM has told.
    up :: #{node() => true},
    %% Those of them that are gone, as Chatter knows.
    gone = #{} :: #{node() => true},
    %% While all connections are over, and `global' may not know: what says that it does.
    unsettled = none :: reference() | none,
    %% How often that was.
    times = 0 :: non_neg_integer(),
    %% When connections ended, in milliseconds of monotonic time, and who has done with them: nobody
    %% yet, this node, all. While the others are asked: what says that they have.
    ended = #{} :: #{node() => {integer(), {here, reference()} | here | reference() | all}}
}).

-opaque settle() :: #settle{}.

%% Things are settled after so long, whatever `global' and the other nodes do.
-define(LIMIT_MS, 2000).

%% Before and after `global' is asked: the VM tells one process after the other, and attempts to
%% connect that had begun before are on their way to this module.
-define(BEFORE_MS, 10).
-define(AFTER_MS, 40).

%% An end that is longer ago is known everywhere. So many are kept at least for as long.
-define(RECENT_MS, 10000).
-define(MAX_ENDED, 1024).

%% @doc So many nodes are connected.
-spec new([node()]) -> settle().
new(Nodes) -> #settle{up = maps:from_keys(Nodes, true)}.

%% @doc Whether an attempt to connect to the node may begin or go on, and how often all connections
%% were over so far.
-spec settled(node(), settle()) -> {ok, non_neg_integer()} | unsettled.
settled(Node, #settle{unsettled = none, times = Times, ended = Ended}) ->
    case Ended of
        #{Node := {_, {here, _}}} -> unsettled;
        #{} -> {ok, Times}
    end;
settled(_, #settle{}) -> unsettled.

%% @doc A node is gone: its connections end. The caller gets messages `{settled, Ref, How}', for
%% done/3.
-spec node_gone(binary(), settle()) -> settle().
node_gone(Name, #settle{up = Up, gone = Gone} = S) ->
    try binary_to_existing_atom(Name) of
        Node when is_map_key(Node, Up) -> unsettle(S#settle{gone = Gone#{Node => true}});
        _ -> S
    catch
        error:badarg -> S
    end.

unsettle(#settle{up = Up, gone = Gone, unsettled = none, times = Times} = S)
  when map_size(Gone) =:= map_size(Up) ->
    Ref = make_ref(),
    _ = erlang:send_after(?LIMIT_MS, self(), {settled, Ref, late}),
    S#settle{unsettled = Ref, times = Times + 1};
unsettle(S) ->
    S.

%% @doc The VM says that a node is connected.
-spec nodeup(node(), settle()) -> settle().
nodeup(Node, S) when Node =:= node() -> S;
nodeup(Node, #settle{up = Up} = S) -> S#settle{up = Up#{Node => true}}.

%% @doc The VM says, at that time, that a node is not connected any more.
-spec nodedown(node(), integer(), settle()) -> settle().
nodedown(Node, NowMs, #settle{up = Up, gone = Gone, unsettled = Ref, ended = Ended} = S) ->
    Left = maps:remove(Node, Gone),
    _ = case Ref =/= none andalso map_size(Gone) > 0 andalso map_size(Left) =:= 0 of
            true -> spawn(?MODULE, ask_global, [self(), Ref]);
            false -> ok
        end,
    Recent = case map_size(Ended) < ?MAX_ENDED of
                 true -> Ended;
                 false -> maps:filter(fun(_, {At, _}) -> NowMs - At < ?RECENT_MS end, Ended)
             end,
    UpLeft = maps:remove(Node, Up),
    Done = case map_size(UpLeft) > 0 andalso chatter_past:is_needed() of
               true ->
                   Asked = make_ref(),
                   _ = spawn(?MODULE, ask_global, [self(), Node, Asked]),
                   {here, Asked};
               false -> all
           end,
    S#settle{up = UpLeft, gone = Left, ended = Recent#{Node => {NowMs, Done}}}.

%% @private
-spec ask_global(pid(), node(), reference()) -> ok.
ask_global(From, Node, Ref) ->
    receive after ?BEFORE_MS -> ok end,
    _ = catch gen_server:call(global_name_server, get_known, ?LIMIT_MS),
    From ! {past, Node, Ref},
    ok.

%% @private
-spec ask_global(pid(), reference()) -> ok.
ask_global(From, Ref) ->
    receive after ?BEFORE_MS -> ok end,
    %% Its answer comes after it has dealt with what it was told before.
    _ = catch gen_server:call(global_name_server, get_known, ?LIMIT_MS),
    receive after ?AFTER_MS -> ok end,
    From ! {settled, Ref, answered},
    ok.

%% @doc `global' has answered, unless more nodes are gone since, or it is too late.
-spec done(reference(), answered | late, settle()) -> settle().
done(Ref, How, #settle{unsettled = Ref, gone = Gone} = S)
  when How =:= late; map_size(Gone) =:= 0 ->
    S#settle{gone = #{}, unsettled = none};
done(_, _, S) -> S.

%% @doc Whether a connection with a node may begin, as far as former ones are concerned. If not, the
%% caller asks again after nodedown/3, and when it gets `{past, Node, Ref}', for asked/3.
-spec past(node(), integer(), settle()) -> {ok | wait, settle()}.
past(Node, _, #settle{gone = Gone} = S) when is_map_key(Node, Gone) ->
    %% The VM has not told yet.
    {wait, S};
past(Node, NowMs, #settle{ended = Ended} = S) ->
    case Ended of
        #{Node := {At, here}} when NowMs - At < ?RECENT_MS ->
            Ref = make_ref(),
            _ = spawn(?MODULE, ask_others, [self(), Node, Ref]),
            {wait, S#settle{ended = Ended#{Node := {At, Ref}}}};
        #{Node := {_, Done}} when Done =/= all, Done =/= here -> {wait, S};
        #{} -> {ok, S}
    end.

%% @private
-spec ask_others(pid(), node(), reference()) -> ok.
ask_others(From, Node, Ref) ->
    ok = chatter_past:await(Node),
    From ! {past, Node, Ref},
    ok.

%% @doc This node or all have done with the node, unless another connection with it has ended since.
-spec asked(node(), reference(), settle()) -> settle().
asked(Node, Ref, #settle{ended = Ended} = S) ->
    case Ended of
        #{Node := {At, {here, Ref}}} -> S#settle{ended = Ended#{Node := {At, here}}};
        #{Node := {At, Ref}} -> S#settle{ended = Ended#{Node := {At, all}}};
        #{} -> S
    end.

%% @doc Whether this node has a connection to another that has not ended lately.
-spec ended(node(), integer(), settle()) -> boolean().
ended(Node, NowMs, #settle{up = Up, ended = Ended}) ->
    case Ended of
        #{Node := {At, _}} when NowMs - At < ?RECENT_MS -> true;
        #{} -> not is_map_key(Node, Up)
    end.
