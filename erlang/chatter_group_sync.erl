%% SPDX-License-Identifier: Apache-2.0
%% @doc How two nodes find out in what they differ, and send that alone. No process.
%%
%%   A to B   digest   one hash of all, and one of each of 64 buckets of nodes
%%   B to A   nodes    of the buckets that differ, each node with its hash; nothing if none does
%%   A to B   lives    live entries of the nodes that differ, and which nodes A wants to have
%%   B to A   lives    those, and what B knows to be newer than what A has told, dead entries too
%%
%% Hashes are of live entries only, so a dead entry travels only to where it ends a live one, and
%% what one node has collected does not come back from another. Nodes with a narrowed interest
%% compare what both of them hold: what both want, and each what it has said itself.
-module(chatter_group_sync).

-export([scope/2, passes/3, digest/3, differing/2, nodes/4, compare/4, export/3, by_interest/3,
         chunks/1]).

-export_type([side/0, scope/0]).

-type id() :: chatter_group_wire:id().
-type side() :: {id(), chatter_group_wire:interests()}.
%% One of the two, and what it wants less of than all.
-type scope() :: all | {side(), side()}.
-type digest() :: {Root :: chatter_group_wire:hash(), Buckets :: binary()}.

-define(BUCKETS, 64).
-define(ALL, 16#ffffffffffffffff).
%% Entries in one message: some 30 KiB.
-define(CHUNK, 1000).

%% @doc What two nodes compare.
-spec scope(side(), side()) -> scope().
scope({_, []}, {_, []}) -> all;
scope(A, B) -> {A, B}.

%% @doc Whether a node wants an entry.
-spec passes(chatter_group_wire:interests(), chatter_group_wire:name(), chatter_group_wire:key()) ->
          boolean().
passes(Interests, Group, {add, From, To}) ->
    case lists:keyfind(Group, 1, Interests) of
        {_, Ranges} -> lists:any(fun(R) -> chatter_group_ranges:meets({From, To}, R) end, Ranges);
        false -> true
    end;
passes(_, _, _) -> true.

%% What of the entries of a node is in scope.
filter(_, all) -> fun(_, _) -> true end;
filter(Id, {{A, OfA}, {B, OfB}}) ->
    fun(Group, Key) ->
            (Id =:= A orelse passes(OfA, Group, Key)) andalso
                (Id =:= B orelse passes(OfB, Group, Key))
    end.

hash(Id, all, State) -> chatter_group_state:hash(Id, State);
hash(Id, Scope, State) -> chatter_group_state:hash(Id, filter(Id, Scope), State).

%% @doc The digest of these nodes.
-spec digest([id()], scope(), chatter_group_state:state()) -> digest().
digest(Ids, Scope, State) ->
    Hashes = [{bucket(Id), life_hash(Id, Scope, State)} || Id <- Ids],
    Root = lists:foldl(fun({_, Hash}, Sum) -> Sum bxor Hash end, 0, Hashes),
    By = lists:foldl(fun({Bucket, Hash}, Map) ->
                             Map#{Bucket => Hash bxor maps:get(Bucket, Map, 0)}
                     end, #{}, Hashes),
    {Root, << <<(maps:get(Bucket, By, 0)):16>> || Bucket <- lists:seq(0, ?BUCKETS - 1) >>}.

life_hash(Id, Scope, State) ->
    {Inc, NetId} = chatter_group_state:life(Id, State),
    chatter_group_wire:life_hash({Id, Inc, NetId, []}, hash(Id, Scope, State)).

bucket(Id) -> erlang:crc32(Id) rem ?BUCKETS.

%% @doc The buckets that differ, as bits, or `none'. Should the hashes of buckets be too short to
%% tell, all of them.
-spec differing(digest() | unknown, digest()) -> none | chatter_group_wire:counter().
differing(unknown, _) -> ?ALL;
differing({Root, _}, {Root, _}) -> none;
differing({_, Theirs}, {_, Mine}) ->
    Pairs = lists:zip(lists:seq(0, ?BUCKETS - 1),
                      lists:zip([H || <<H:16>> <= Theirs], [H || <<H:16>> <= Mine])),
    case lists:sum([1 bsl Bucket || {Bucket, {A, B}} <- Pairs, A =/= B]) of
        0 -> ?ALL;
        Mask -> Mask
    end.

%% @doc The nodes of these buckets with their hashes.
-spec nodes([id()], chatter_group_wire:counter(), scope(), chatter_group_state:state()) ->
          [{id(), chatter_group_wire:counter(), chatter_group_wire:hash()}].
nodes(Ids, Mask, Scope, State) ->
    [{Id, element(1, chatter_group_state:life(Id, State)), life_hash(Id, Scope, State)}
     || Id <- Ids, Mask band (1 bsl bucket(Id)) =/= 0].

%% @doc What to send of these nodes, and which to ask for, when the other has sent what it has in
%% these buckets.
-spec compare([id()], {Mask :: chatter_group_wire:counter(),
                       [{id(), chatter_group_wire:counter(), chatter_group_wire:hash()}]},
              scope(), chatter_group_state:state()) -> {[chatter_group_wire:life()], [id()]}.
compare(Ids, {Mask, Theirs}, Scope, State) ->
    Verdicts = [{Id, verdict(Id, Inc, Hash, Scope, State)} || {Id, Inc, Hash} <- Theirs],
    Told = maps:from_list([{Id, true} || {Id, _, _} <- Theirs]),
    Unknown = [Id || {Id, _, _} <- nodes(Ids, Mask, Scope, State), not is_map_key(Id, Told)],
    Push = Unknown ++ [Id || {Id, Verdict} <- Verdicts, Verdict =:= push orelse Verdict =:= both],
    {[export(Id, Scope, State) || Id <- Push],
     [Id || {Id, Verdict} <- Verdicts, Verdict =:= want orelse Verdict =:= both]}.

verdict(Id, Inc, Hash, Scope, State) ->
    case chatter_group_state:life(Id, State) of
        none -> want;
        {Mine, _} when Mine < Inc -> want;
        {Mine, _} when Mine > Inc -> push;
        {Inc, _} ->
            case life_hash(Id, Scope, State) of
                Hash -> same;
                _ -> both
            end
    end.

%% @doc The live entries of a node that are in scope.
-spec export(id(), scope(), chatter_group_state:state()) -> chatter_group_wire:life().
export(Id, Scope, State) -> chatter_group_state:export(Id, filter(Id, Scope), State).

%% @doc Who of these nodes is to get what of a change. Most want all of it.
-spec by_interest(chatter_group_wire:life(), [id()], chatter_group_state:state()) ->
          [{[id(), ...], chatter_group_wire:life()}].
by_interest({_, _, _, []}, _, _) -> [];
by_interest({Id, Inc, NetId, Groups}, Peers, State) ->
    Names = [Group || {Group, _} <- Groups],
    Narrowed = maps:from_list([{Peer, true} || Peer <- chatter_group_state:narrowed(State)]),
    Classes = maps:groups_from_list(
                fun(Peer) when is_map_key(Peer, Narrowed) ->
                        [Of || {Group, _} = Of <- chatter_group_state:interests(Peer, State),
                               lists:member(Group, Names)];
                   (_) -> []
                end, Peers),
    [{Of, {Id, Inc, NetId, Part}} || {Interests, Of} <- maps:to_list(Classes),
                                     Part <- [passing(Interests, Groups)], Part =/= []].

passing(Interests, Groups) ->
    [{Group, Some} || {Group, Entries} <- Groups,
                      Some <- [[E || {Key, _} = E <- Entries, passes(Interests, Group, Key)]],
                      Some =/= []].

%% @doc Splits what is to be sent into messages of bounded size.
-spec chunks([chatter_group_wire:life()]) -> [[chatter_group_wire:life()]].
chunks(Lives) ->
    Pieces = lists:append([pieces(Life) || Life <- Lives]),
    gather(Pieces, 0, []).

%% A node without entries is a piece of its own: its incarnation is news.
pieces({Id, Inc, NetId, Groups}) ->
    case [{Id, Inc, NetId, [{Group, Part}]} || {Group, Entries} <- Groups, Part <- split(Entries)]
    of
        [] -> [{Id, Inc, NetId, []}];
        Pieces -> Pieces
    end.

split(Entries) when length(Entries) =< ?CHUNK -> [Entries];
split(Entries) ->
    {Part, Rest} = lists:split(?CHUNK, Entries),
    [Part | split(Rest)].

gather([Piece | Pieces], Size, Chunk) ->
    case Size + size_of(Piece) of
        Sum when Sum > ?CHUNK, Chunk =/= [] -> [Chunk | gather([Piece | Pieces], 0, [])];
        Sum -> gather(Pieces, Sum, add(Piece, Chunk))
    end;
gather([], _, []) -> [];
gather([], _, Chunk) -> [Chunk].

size_of({_, _, _, Groups}) -> 1 + lists:sum([length(Entries) || {_, Entries} <- Groups]).

%% Pieces of a node that meet again are one.
add({Id, Inc, NetId, Groups}, [{Id, Inc, NetId, Former} | Chunk]) ->
    [{Id, Inc, NetId, Groups ++ Former} | Chunk];
add(Piece, Chunk) -> [Piece | Chunk].
