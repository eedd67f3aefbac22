%% SPDX-License-Identifier: Apache-2.0
%% @doc Messages of groups to bytes and back. No process.
%%
%% The form is portable: nothing in it is Erlang's external term format. docs/groups.md has it byte
%% by byte. Numbers of no fixed width are unsigned LEB128 of at most 64 bits. What is decoded has
%% been checked whole: names, ranges and their order, unknown kinds, trailing bytes. A count costs
%% no memory before its elements are there.
-module(chatter_group_wire).

-export([encode/1, decode/1, entry/2, hash/3, life_hash/2, ranges_hash/1]).

-export_type([message/0, life/0, name/0, id/0, key/0, entry/0, value/0, content/0, net_id/0,
              range/0, interests/0, hash/0, counter/0]).

-type name() :: binary().
%% The name of a group: 1 to 255 bytes.
-type id() :: binary().
%% The full name of a node: 1 to 255 bytes.
-type counter() :: 0..16#ffffffffffffffff.
-type hash() :: 0..16#ffffffffffffff.
-type range() :: {0..16#ffffffff, 0..16#ffffffff}.
%% First and last key, both of them in the range.
-type net_id() :: none | {net_id, inet:ip_address(), inet:port_number()}.
-type key() :: get | {add, 0..16#ffffffff, 0..16#ffffffff} | {sub, name()}.
-type content() :: {Member :: boolean(), all | [range()]} | inet:port_number() | none.
%% Of `get', `add' and `sub', in this order.
-type value() :: {live | dead, content()}.
-type entry() :: {Version :: counter(), Clock :: counter(), value()}.
-type life() :: {id(), Incarnation :: counter(), net_id(), [{name(), [{key(), entry()}]}]}.
-type interests() :: [{name(), [range()]}].
%% The groups of which a node wants less than all, with what it wants.
-type message() ::
        {lives, id(), interests(), [life()], Wants :: [id()], Answer :: boolean()}
      | {digest, id(), interests(), Supposed :: hash(), Root :: hash(), Buckets :: binary()}
      | {nodes, id(), interests(), Mask :: counter(), [{id(), counter(), hash()}]}.

-define(VERSION, 1).
-define(LIVES, 1).
-define(DIGEST, 2).
-define(NODES, 3).
-define(BUCKETS_BYTES, 128).

-define(GET, 1).
-define(ADD, 2).
-define(SUB, 3).
-define(DEAD, 16#80).
-define(MEMBER, 16#10).
-define(NARROW, 16#20).

%% @doc The bytes of a message.
-spec encode(message()) -> binary().
encode(Message) ->
    iolist_to_binary([?VERSION | message(Message)]).

message({lives, From, Interests, Lives, Wants, Answer}) ->
    [?LIVES, text(From), flag(Answer), interests(Interests),
     list(fun life/1, Lives), list(fun text/1, Wants)];
message({digest, From, Interests, Supposed, Root, Buckets}) ->
    [?DIGEST, text(From), interests(Interests), <<Supposed:56, Root:56>>, Buckets];
message({nodes, From, Interests, Mask, Nodes}) ->
    [?NODES, text(From), interests(Interests), <<Mask:64>>,
     list(fun({Id, Inc, Hash}) -> [text(Id), int(Inc), <<Hash:56>>] end, Nodes)].

life({Id, Inc, NetId, Groups}) ->
    [text(Id), int(Inc), net_id(NetId), list(fun group/1, Groups)].

group({Name, Entries}) ->
    [text(Name), list(fun({Key, Entry}) -> entry(Key, Entry) end, Entries)].

%% @doc The bytes of one entry. Of two entries with the same version, the one whose bytes are
%% greater is the newer.
-spec entry(key(), entry()) -> iodata().
entry(get, {V, Clock, {Life, {Member, Interest}}}) ->
    {Narrow, Ranges} = case Interest of
                           all -> {0, []};
                           _ -> {?NARROW, list(fun range/1, Interest)}
                       end,
    [?GET bor dead(Life) bor Narrow bor (case Member of true -> ?MEMBER; false -> 0 end),
     int(V), int(Clock), Ranges];
entry({add, From, To}, {V, Clock, {Life, Port}}) ->
    [?ADD bor dead(Life), int(V), int(Clock), <<From:32, To:32, Port:16>>];
entry({sub, Child}, {V, Clock, {Life, none}}) ->
    [?SUB bor dead(Life), int(V), int(Clock), text(Child)].

%% @doc What an entry adds to the digest of its node: 56 bits, so that it is an immediate term.
-spec hash(name(), key(), entry()) -> hash().
hash(Group, Key, Entry) ->
    <<Hash:56, _/binary>> = erlang:md5([text(Group), entry(Key, Entry)]),
    Hash.

%% @doc What a node, with the digest of its entries, adds to the digest of all.
-spec life_hash(life(), hash()) -> hash().
life_hash({Id, Inc, NetId, _}, Entries) ->
    <<Hash:56, _/binary>> = erlang:md5([text(Id), int(Inc), net_id(NetId), <<Entries:56>>]),
    Hash.

%% @doc Tells interests from each other; 0 if nothing is narrowed.
-spec ranges_hash(interests()) -> hash().
ranges_hash([]) -> 0;
ranges_hash(Interests) ->
    <<Hash:56, _/binary>> = erlang:md5(interests(Interests)),
    Hash.

dead(dead) -> ?DEAD;
dead(live) -> 0.

flag(true) -> 1;
flag(false) -> 0.

interests(Interests) ->
    list(fun({Group, Ranges}) -> [text(Group), list(fun range/1, Ranges)] end, Interests).

range({From, To}) -> <<From:32, To:32>>.

net_id(none) -> <<0>>;
net_id({net_id, {A, B, C, D}, Port}) -> <<4, A, B, C, D, Port:16>>;
net_id({net_id, Ip, Port}) -> [6, [<<Word:16>> || Word <- tuple_to_list(Ip)], <<Port:16>>].

text(Bytes) -> [byte_size(Bytes), Bytes].

list(Encode, Items) -> [int(length(Items)) | lists:map(Encode, Items)].

int(N) when N < 128 -> N;
int(N) -> [16#80 bor (N band 16#7f) | int_rest(N bsr 7)].

int_rest(N) when N < 128 -> [N];
int_rest(N) -> [16#80 bor (N band 16#7f) | int_rest(N bsr 7)].

%%% ---------------------------------------------------------------------------------------------

%% @doc The message of these bytes, or nothing if they are not exactly one of this version.
-spec decode(binary()) -> {ok, message()} | {error, malformed | version}.
decode(<<?VERSION, Type, Rest/binary>>) ->
    try
        {From, Body} = get_text(Rest),
        {Message, <<>>} = get_message(Type, From, Body),
        {ok, Message}
    catch
        error:_ -> {error, malformed}
    end;
decode(<<_, _/binary>>) -> {error, version};
decode(_) -> {error, malformed}.

%% Whatever does not fit is an error of the match, which decode/1 turns into one answer.
get_message(?LIVES, From, <<Answer, B0/binary>>) when Answer < 2 ->
    {Interests, B1} = get_interests(B0),
    {Lives, B2} = get_list(fun get_life/1, B1),
    {Wants, B3} = get_list(fun get_text/1, B2),
    {{lives, From, Interests, Lives, Wants, Answer =:= 1}, B3};
get_message(?DIGEST, From, B0) ->
    {Interests, B1} = get_interests(B0),
    <<Supposed:56, Root:56, Buckets:?BUCKETS_BYTES/binary, B2/binary>> = B1,
    {{digest, From, Interests, Supposed, Root, Buckets}, B2};
get_message(?NODES, From, B0) ->
    {Interests, <<Mask:64, B1/binary>>} = get_interests(B0),
    {Nodes, B2} = get_list(fun get_node/1, B1),
    {{nodes, From, Interests, Mask, Nodes}, B2}.

get_node(B0) ->
    {Id, B1} = get_text(B0),
    {Inc, <<Hash:56, B2/binary>>} = get_int(B1),
    {{Id, Inc, Hash}, B2}.

get_life(B0) ->
    {Id, B1} = get_text(B0),
    {Inc, B2} = get_int(B1),
    {NetId, B3} = get_net_id(B2),
    {Groups, B4} = get_list(fun get_group/1, B3),
    {{Id, Inc, NetId, Groups}, B4}.

get_net_id(<<0, B/binary>>) -> {none, B};
get_net_id(<<4, A, B, C, D, Port:16, Rest/binary>>) -> {{net_id, {A, B, C, D}, Port}, Rest};
get_net_id(<<6, Ip:16/binary, Port:16, Rest/binary>>) ->
    {{net_id, list_to_tuple([Word || <<Word:16>> <= Ip]), Port}, Rest}.

get_group(B0) ->
    {Name, B1} = get_text(B0),
    {Entries, B2} = get_list(fun get_entry/1, B1),
    {{Name, Entries}, B2}.

get_entry(<<Head, B0/binary>>) ->
    {V, B1} = get_int(B0),
    {Clock, B2} = get_int(B1),
    Life = if Head band ?DEAD =:= 0 -> live; true -> dead end,
    {Key, Content, B3} = get_content(Head band 16#7f, B2),
    {{Key, {V, Clock, {Life, Content}}}, B3}.

get_content(?ADD, <<From:32, To:32, Port:16, B/binary>>) when From =< To ->
    {{add, From, To}, Port, B};
get_content(?SUB, B0) ->
    {Child, B1} = get_text(B0),
    {{sub, Child}, none, B1};
get_content(Head, B0) when Head band 16#0f =:= ?GET, Head band 16#40 =:= 0 ->
    {Interest, B1} = case Head band ?NARROW of
                         0 -> {all, B0};
                         _ -> get_ranges(B0)
                     end,
    {get, {Head band ?MEMBER =/= 0, Interest}, B1}.

get_interests(B) ->
    get_list(fun(B0) ->
                     {Group, B1} = get_text(B0),
                     {Ranges, B2} = get_ranges(B1),
                     {{Group, Ranges}, B2}
             end, B).

%% Sorted, and with a key or more between one range and the next: one form for each set of keys.
get_ranges(B0) ->
    {Ranges, B1} = get_list(fun(<<From:32, To:32, B/binary>>) when From =< To ->
                                    {{From, To}, B}
                            end, B0),
    true = apart(Ranges),
    {Ranges, B1}.

apart([{_, To} | [{From, _} | _] = Rest]) -> To + 1 < From andalso apart(Rest);
apart(_) -> true.

%% A name is copied: it outlives the message.
get_text(<<Size, Text:Size/binary, B/binary>>) when Size > 0 -> {binary:copy(Text), B}.

get_list(Get, B0) ->
    {Count, B1} = get_int(B0),
    %% An element has a byte at least.
    true = Count =< byte_size(B1),
    get_list(Count, Get, B1, []).

get_list(0, _, B, Items) -> {lists:reverse(Items), B};
get_list(N, Get, B0, Items) ->
    {Item, B1} = Get(B0),
    get_list(N - 1, Get, B1, [Item | Items]).

get_int(B) -> get_int(B, 0, 0).

get_int(<<0:1, Bits:7, B/binary>>, Shift, N) when Shift < 64 ->
    Value = N bor (Bits bsl Shift),
    %% No longer than need be: one form for each number.
    true = Value =< 16#ffffffffffffffff andalso (Bits > 0 orelse Shift =:= 0),
    {Value, B};
get_int(<<1:1, Bits:7, B/binary>>, Shift, N) when Shift < 64 ->
    get_int(B, Shift + 7, N bor (Bits bsl Shift)).
